"""Export to the DeciLM (Nemotron-NAS) format, which vLLM, SGLang and TensorRT-LLM run from `block_configs`.

The files have the form of NVIDIA's published derived models (Llama-3.3-Nemotron-Super-49B,
Llama-3.1-Nemotron-Ultra-253B): every layer has grouped attention or none, and a gated FFN or none. The child's
subblocks are packed into as few layers as possible; a fused run is one wide FFN. The export refuses whatever one of the
three engines would refuse, or would load and compute wrongly.

The folder also carries `modeling_decilm.py`, written from the engines' sources, with which transformers, lm_eval and
PEFT load it. Each export is reloaded through that file in a fresh process and compared with the child. Exports of every
form were run once in vLLM 0.32 on a CPU, and gave the child's tokens; `tests/test_vllm.py` repeats that where vLLM is.
Matrices may be stored in compressed-tensors' formats, which vLLM and transformers load (`rounded.py`).
"""

import json
import shutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blocklib.block import Choice
from blocklib.errors import UnsupportedFormatError
from blocklib.formats import decilm
from blocklib.formats.subblocks import Layer, own_names, repack, subblocks_of, tensors_of
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import own_shape
from blocklib.shape import Shape
from nas.errors import UnsupportedExportError
from nas.export import configuration_decilm, modeling_decilm
from nas.export.carried_files import write_tokenizer
from nas.export.configuration_decilm import DeciLMConfig
from nas.export.exported import Card, Exported, files_in, whole_folder
from nas.export.least_version import checked
from nas.export.modeling_decilm import width_of
from nas.export.parent_settings import ParentSettings, check_settings
from nas.export.rounded import SECTION, RoundedMatrices, compressed, notes_on
from nas.export.transformers_folder import LOADING_OWN_CODE, described
from nas.export.vllm_flags import serving_lines

_CARRIED_ROTARY = ("default", "linear", "llama3")
_INSTEAD = "export as hf, which carries it"
_TAGS = ("nemotron-nas", "custom_code")
_WIDTH_MULTIPLE = 256
"""Every width that an `ffn_mult` can mean is a multiple of it."""
_CHANGED = {
    "block_configs": "the child's blocks",
    "intermediate_size": "set for each block",
    "num_key_value_heads": "set for each block",
}
"""Fields of config.json that differ from the parent's because of this format, each with its reason."""
_AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModel": "modeling_decilm.DeciLMModel",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}
_LOADING = (
    LOADING_OWN_CODE
    + "\nIn vLLM, by its own code for this format (the flag lets it run `configuration_decilm.py`):\n"
    + serving_lines("--trust-remote-code")
)


def export_decilm(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
    rounded: RoundedMatrices | None = None,
) -> Exported:
    """Write the child to `out`, reload it in a fresh process that cannot import this package, and compare as for `hf`.

    The child generates with the settings of `parent`. Every field of the configurations that differs must be on the
    list of allowed differences. `rounded`: matrices are stored in compressed-tensors' formats, and the reloaded
    model is compared with the child as these leave it.

    `card` is Markdown, with YAML front matter or without. `notes` of the result say which engines cannot load it.

    Raises UnsupportedExportError naming the subblock the format cannot carry, FileExistsError where `out` is not empty,
    ExportMismatchError where the reloaded model is not the child. After an error nothing is left behind.
    """
    stream = subblocks_of(child)
    rotary: dict[str, Any] = dict(child.config.rope_parameters or {})
    check_decilm((placed.choice for placed in stream), child.config)
    layers = repack(stream)
    held = compressed(child, rounded)
    notes = _notes(layers) + notes_on(held)
    if layers[0].attention is None:
        layers = (replace(layers[0], attention=_no_attention(child)), *layers[1:])
    if parent is not None:
        child.generation_config = deepcopy(parent.generation.settings)
    with whole_folder(out) as folder:
        tensors, config, own = tensors_of(child, layers), _config(child, layers, rotary), own_names(layers)
        if held is not None:
            tensors, config = held.tensors(tensors, own), config | {"quantization_config": held.config(own)}
        save_torch_state_dict(tensors, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _write_code(folder)
        child.generation_config.save_pretrained(folder)
        write_tokenizer(tokenizer, parent, folder)
        if parent is not None:
            notes += check_settings(folder, DeciLMConfig.from_pretrained(folder), parent, _CHANGED | SECTION)
        told = Card(card, _LOADING, _TAGS, notes)
        difference, notes = described(folder, child if held is None else held.model, tokenizer, told)
    return Exported(out, "decilm", difference, files_in(out), notes)


def check_decilm(choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError at the first choice that the format cannot carry in a child of this
    configuration."""
    try:
        decilm.check_decilm(choices, config)
    except UnsupportedFormatError as error:
        raise UnsupportedExportError(f"{error}; {_INSTEAD}") from error
    rotary = dict(config.rope_parameters or {})["rope_type"]
    if rotary not in _CARRIED_ROTARY:
        raise UnsupportedExportError(
            f"rotary embedding of type {rotary!r}: the DeciLM export carries {', '.join(_CARRIED_ROTARY)}; {_INSTEAD}"
        )


def _write_code(folder: Path) -> None:
    """Copy the configuration, which any transformers reads, and the model, which looks for it beside itself."""
    shutil.copy(configuration_decilm.__file__, folder / "configuration_decilm.py")
    model = Path(modeling_decilm.__file__).read_text(encoding="utf-8")
    beside = model.replace("from nas.export.configuration_decilm", "from .configuration_decilm")
    (folder / "modeling_decilm.py").write_text(checked(beside), encoding="utf-8")


def _notes(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    notes = []
    odd = sorted({_width(layer.ffn) for layer in layers if layer.ffn and _width(layer.ffn) % _WIDTH_MULTIPLE})
    if odd:
        notes.append(
            f"FFN widths {', '.join(map(str, odd))} are written as intermediate_size, which vLLM reads; SGLang and "
            f"TensorRT-LLM need multiples of {_WIDTH_MULTIPLE}."
        )
    if layers[0].attention is None:
        notes.append(
            "The first layer has no attention, which vLLM cannot run: it was given one of zeros with a single KV head, "
            "which adds nothing to the result and one head's keys and values to the cache."
        )
    return tuple(notes)


def _no_attention(child: PuzzleNasForCausalLM) -> dict[str, Tensor]:
    """An attention with one KV head whose output is exactly zero."""
    shape = own_shape(child.config)
    query, one_head = shape.heads * shape.head_dim, shape.head_dim
    outputs_inputs = {
        "q_proj": (query, shape.hidden),
        "k_proj": (one_head, shape.hidden),
        "v_proj": (one_head, shape.hidden),
        "o_proj": (shape.hidden, query),
    }
    norm = {"input_layernorm.weight": torch.ones(shape.hidden, dtype=child.dtype)}
    return norm | {
        f"self_attn.{name}.weight": torch.zeros(size, dtype=child.dtype) for name, size in outputs_inputs.items()
    }


def _config(child: PuzzleNasForCausalLM, layers: tuple[Layer, ...], rotary: dict[str, Any]) -> dict[str, Any]:
    """config.json in the published form, which transformers 4 and 5 and the engines read alike."""
    config, shape = child.config, own_shape(child.config)
    scaling = dict(rotary)
    theta = scaling.pop("rope_theta")
    kept = ("attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size",
            "initializer_range", "max_position_embeddings", "num_attention_heads", "rms_norm_eps",
            "tie_word_embeddings", "vocab_size")  # fmt: skip
    written: dict[str, Any] = {name: getattr(config, name) for name in kept} | {
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": False,
        "auto_map": _AUTO_MAP,
        "block_configs": [_block(layer, shape) for layer in layers],
        "intermediate_size": None,
        "mlp_bias": False,
        "model_type": "nemotron-nas",
        "num_hidden_layers": len(layers),
        "num_key_value_heads": None,
        "pretraining_tp": 1,
        "rope_theta": theta,
        "torch_dtype": str(child.dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
        "use_cache": True,
    }
    if scaling["rope_type"] != "default":
        written["rope_scaling"] = scaling
    if shape.head_dim * shape.heads != shape.hidden:
        written["head_dim"] = shape.head_dim
    return written


def _block(layer: Layer, shape: Shape) -> dict[str, Any]:
    """One entry of `block_configs`."""
    group = None
    if layer.attention is not None:
        kv_heads = layer.attention["self_attn.k_proj.weight"].shape[0] // shape.head_dim
        group = shape.heads // kv_heads
    attention = {
        "n_heads_in_group": group,
        "no_op": group is None,
        "num_sink_tokens": None,
        "replace_with_linear": False,
        "sparsify": None,
        "unshifted_sink": False,
        "use_prefill_window_in_sink_attention": False,
        "window_length": None,
    }
    size = {"ffn_mult": None} if layer.ffn is None else ffn_size(_width(layer.ffn), shape.hidden)
    ffn = {**size, "no_op": layer.ffn is None, "replace_with_linear": False, "sparsify": None}
    return {"attention": attention, "ffn": ffn}


def ffn_size(width: int, hidden: int) -> dict[str, float | int]:
    """`ffn_mult` if it rounds to exactly this width, else `intermediate_size` without `ffn_mult`, which would take
    precedence."""
    ffn_mult = round(3 * width / (2 * hidden), 6)
    return {"ffn_mult": ffn_mult} if width_of(ffn_mult, hidden) == width else {"intermediate_size": width}


def _width(ffn: dict[str, Tensor]) -> int:
    return ffn["mlp.gate_proj.weight"].shape[0]
