"""The `quantization_config` of a config.json, which tells transformers and vLLM how a folder's matrices are stored.
This is the schema of the package compressed-tensors (`QuantizationConfig`, version 0.15). Knows names and formats only.
"""

from collections.abc import Mapping
from typing import Any

from blocklib.formats.compressed_types import CompressedFormat

_FORMAT_OF = {"fp8": "float-quantized", "int4": "pack-quantized"}
_MIXED = "mixed-precision"
_HEAD = "lm_head"


def quantization_config(formats: Mapping[str, CompressedFormat | None]) -> dict[str, Any]:
    """The section for these matrices of linear maps, by their names in the file; None: stored in the type of the model.

    Inputs of the matrices are not rounded. Embedding and head are stored in the type of the model.
    """
    groups: dict[str, tuple[CompressedFormat, list[str]]] = {}
    ignored = []
    for name, format in formats.items():
        module = name.removesuffix(".weight")
        if format is None:
            ignored.append(module)
        else:
            groups.setdefault(str(format), (format, []))[1].append(module)
    kinds = {_FORMAT_OF[format.name] for format, _ in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": kinds.pop() if len(kinds) == 1 else _MIXED,
        "config_groups": {
            f"group_{index}": _group(format, ["Linear"] if len(groups) == 1 else modules)
            for index, (format, modules) in enumerate(groups.values())
        },
        "ignore": [*ignored, _HEAD],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _group(format: CompressedFormat, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": 8 if format.is_float else 4,
        "type": "float" if format.is_float else "int",
        "symmetric": True,
        "strategy": "channel" if format.is_float else "group",
        "group_size": None if format.is_float else format.numbers,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "format": _FORMAT_OF[format.name],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
