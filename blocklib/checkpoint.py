"""A checkpoint's files, read before anything is loaded: the configuration, and every tensor's name, shape and dtype.

Reads JSON, and the headers of safetensors files; runs no code of a checkpoint, unpickles nothing, and needs the
standard library alone. Whether the tensors are those its model needs is `loading.py`'s question.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklib.errors import CheckpointError, MissingCheckpointError, UnsupportedModelError
from blocklib.families import FAMILIES, scaled_positions

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "copy or download the checkpoint again (hf download ID --local-dir FOLDER)"
_FLOAT = "give the checkpoint it was made from, in float32, bfloat16 or float16, or save a dequantised copy"
# transformers looks for weights in this order.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.onnx")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_VOCABULARY = re.compile(r"(^|\.)(embed_tokens|wte|lm_head)\.weight$")
# How families call their numbers of positions and of layers.
_POSITIONS = ("max_position_embeddings", "n_positions")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# The longest header that safetensors itself reads.
_LONGEST_HEADER = 100_000_000
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_PICKLED = {"torch.float64": 8, "torch.float32": 4, "torch.float16": 2, "torch.bfloat16": 2}
# Tensors that quantisers keep beside, or instead of, a weight: scales, zero points, packed and grouped weights.
_QUANTISED = re.compile(
    r"(^|[._])(weight_scale(_inv|_2)?|input_scale|output_scale|weight_packed|weight_zero_point|weight_shape|qweight|"
    r"qzeros|scales|g_idx|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.[\w]+|SCB)$"
)
# Buffers that files of earlier transformers hold and that today's classes compute themselves.
_OLD_BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|(^|\.)h\.\d+\.attn\.(attention\.)?(bias|masked_bias)|(^|\.)position_ids)$"
)


@dataclass(frozen=True)
class Tensor:
    """A tensor as its file's header has it: `dtype` as safetensors call it, its bytes from `start` to `end` there."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint's folder. `tensors` is empty if the weights are pickled: only torch reads those."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tensors: Mapping[str, Tensor]

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    @property
    def positions(self) -> int | None:
        """Tokens of a sequence that there are positions for; None where config.json leaves that to its family."""
        most = next((self.config[key] for key in _POSITIONS if isinstance(self.config.get(key), int)), None)
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if FAMILIES[self.config["model_type"]].has_local_layers:
            rope = {}  # It counts the positions that scaling stretches them to.
        try:
            return None if most is None else scaled_positions(most, rope)
        except (AttributeError, TypeError, ValueError):
            return None  # transformers will say what is wrong with it


def inspect(folder: Path) -> Checkpoint:
    """Read what the files of a checkpoint say.

    Raises FileNotFoundError for what is not there, UnsupportedModelError for another family, and CheckpointError for
    files that are cut, damaged, or pointers of git-lfs, and for what no parent can be: quantised, or of unequal layers.
    """
    config = read_configuration(folder)
    generation = folder / "generation_config.json"
    if generation.is_file():
        _check_token_ids(generation, read_json(generation), config.get("vocab_size"))
    index, weights = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in weights:
        if path.suffix == ".safetensors":
            tensors |= _header(path)
        else:
            _check_pickle(path)
    for name, file in index.items() if tensors else ():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(folder / WEIGHTS[1], f"says that {file} holds {name}, but it does not", _AGAIN)
    for name, tensor in tensors.items():
        _check_float(name, tensor)
    _check_vocabulary(tensors, config.get("vocab_size"))
    layers = next((config[key] for key in _LAYERS if isinstance(config.get(key), int)), None)
    if tensors and layers is not None:
        check_layers(folder / "config.json", tensors, layers)
    return Checkpoint(folder, config, weights, tensors)


def read_configuration(folder: Path) -> dict[str, Any]:
    """config.json, of a model that may be a parent as far as it tells. Raises as `inspect` does."""
    file = folder / "config.json"
    check_present(folder)
    if not file.is_file():
        adapter = "; it holds an adapter: merge that into its base model first" if _has_adapter(folder) else ""
        raise MissingCheckpointError(
            f"{folder} holds no config.json: give a folder saved by save_pretrained, or a hub id{adapter}"
        )
    config = read_json(file)
    _check_family(file, config)
    _check_quantisation(folder, config)
    for key in ("per_layer_config", "block_configs"):
        if config.get(key):
            raise CheckpointError(file, f"{key}: its layers differ from each other", "give a parent of equal layers")
    if config.get("transformers_weights"):
        remedy = f"call the file {WEIGHTS[0]}, and leave the key out"
        raise CheckpointError(file, "transformers_weights: names weights of its own", remedy)
    if _has_adapter(folder):
        raise CheckpointError(
            folder / "adapter_config.json",
            "an adapter lies beside the model, and it is unclear which of the two you mean",
            "merge it into the model (peft's merge_and_unload) and save that, or move it away",
        )
    _check_token_ids(file, config, config.get("vocab_size"))
    return config


def check_present(folder: Path) -> None:
    """Raise FileNotFoundError where a folder is not there: moved, renamed, or another machine's."""
    if not folder.exists():
        raise MissingCheckpointError(f"{folder} is gone, or is not on this machine: put the checkpoint there again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError, naming the file and the place in it."""
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(file, f"is not JSON: byte {error.start} is not UTF-8", _AGAIN) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        cause = "is empty" if not error.doc.strip() else f"is not JSON, or cut: {where}"
        raise CheckpointError(file, cause, _AGAIN) from error
    except RecursionError as error:
        raise CheckpointError(file, "is nested too deep for JSON of a checkpoint", _AGAIN) from error
    if not isinstance(found, dict):
        raise CheckpointError(file, f"holds a {type(found).__name__} instead of keys and values", _AGAIN)
    return found


def refuse_pointer(file: Path) -> None:
    """Raise CheckpointError where git-lfs left a note of where a file lies instead of the file."""
    with file.open("rb") as opened:
        begin = opened.read(300)
    if begin.startswith(_LFS_POINTER):
        size = re.search(rb"size (\d+)", begin)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise CheckpointError(file, f"is a git-lfs pointer, not the file{of}", f"run git lfs pull in {file.parent}")


def check_layers(config_file: Path, tensors: Mapping[str, Tensor], layers: int) -> None:
    """Raise CheckpointError where the files hold more layers than their configuration counts, or fewer.

    The count comes first: it says in a word what else comes out as dozens of tensors left over or missing.
    """
    held = {name: int(number[1]) for name in tensors if (number := _LAYER.search(name))}
    count = 1 + max(held.values(), default=-1)
    if count == layers:
        return
    unused = sorted(name for name, layer in held.items() if layer >= layers)
    of = f": {enumerated(unused)} would go unused" if unused else ""
    raise CheckpointError(
        config_file,
        f"counts {layers} layers, and the weights beside it hold {count}{of}",
        f"correct num_hidden_layers there, or {_AGAIN}",
    )


def bytes_of_a_number(tensors: Iterable[Tensor]) -> float:
    """The mean over all numbers of tensors, each counted once; of safetensors and of torch's old format."""
    once = {(tensor.file, tensor.name): tensor for tensor in tensors}.values()
    sizes = [(math.prod(tensor.shape), (_FLOATS | _PICKLED)[tensor.dtype]) for tensor in once]
    return sum(count * size for count, size in sizes) / sum(count for count, _ in sizes)


def is_old_buffer(name: str) -> bool:
    """Whether a tensor is none of the model's weights, but what an earlier transformers saved along with them."""
    return _OLD_BUFFERS.search(name) is not None


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two stored tensors are equal, byte for byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, 1 << 24):
            yield file.read(min(1 << 24, tensor.end - start))


def _has_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _check_family(file: Path, config: Mapping[str, Any]) -> None:
    kind, supported = config.get("model_type"), ", ".join(sorted(FAMILIES))
    if kind is None:
        raise CheckpointError(file, "has no model_type", f"add the model's; supported: {supported}")
    if not isinstance(kind, str) or kind not in FAMILIES:
        code = "; its own code (auto_map) is not run" if config.get("auto_map") else ""
        raise UnsupportedModelError(
            f"{file}: model_type {kind!r} is not of a supported family{code}; supported: {supported}"
        )


def _check_quantisation(folder: Path, config: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if (asked := config.get(key)) is not None:
            method = asked.get("quant_method") if isinstance(asked, dict) else None
            named = f" ({method})" if method else ""
            raise CheckpointError(folder / "config.json", f"{key}: its weights are quantised{named}", _FLOAT)
    for name in ("hf_quant_config.json", "quantize_config.json", "quant_config.json"):
        if (folder / name).is_file():
            raise CheckpointError(folder / name, "its weights are quantised", _FLOAT)


def _check_token_ids(file: Path, values: Mapping[str, Any], vocabulary: Any) -> None:
    """Ids of special tokens that the embedding has no row for. -1 is an old way to say that there is none."""
    if isinstance(vocabulary, int) and vocabulary < 1:
        raise CheckpointError(file, f"vocab_size is {vocabulary}", "correct it there")
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        given = values.get(key)
        for token in given if isinstance(given, list) else [given]:
            if isinstance(token, int) and isinstance(vocabulary, int) and not -1 <= token < vocabulary:
                raise CheckpointError(
                    file,
                    f"{key} is {token}, and vocab_size {vocabulary} has tokens 0 to {vocabulary - 1}",
                    "correct it there; null where the model has none",
                )


def _check_vocabulary(tensors: Mapping[str, Tensor], vocabulary: Any) -> None:
    for name, tensor in tensors.items():
        if _VOCABULARY.search(name) and isinstance(vocabulary, int) and tensor.shape[:1] != (vocabulary,):
            cause = f"{name} is {list(tensor.shape)}, and config.json says vocab_size: {vocabulary}"
            raise CheckpointError(tensor.file, cause, f"correct config.json, or {_AGAIN}")


def weight_files(folder: Path) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Which file holds which tensor as an index says, empty where there is none; and the files."""
    for name in WEIGHTS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise CheckpointError(folder / name, "is a link that leads nowhere", _AGAIN)
        if name.endswith(".index.json") and (folder / name).exists():
            index = weight_map(folder / name)
            paths = [folder / shard for shard in sorted(set(index.values()))]
            if gone := [path.name for path in paths if not path.is_file()]:
                raise CheckpointError(folder / name, f"names what is missing: {enumerated(gone)}", _AGAIN)
            return index, tuple(paths)
        if (folder / name).exists():
            return {}, (folder / name,)
    others = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)})
    other = f"; {enumerated(others)}: of another layout, to be converted to safetensors" if others else ""
    raise MissingCheckpointError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)}{other}")


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index of weights says. Raises CheckpointError where it is none."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(index, "has no weight_map of tensors and their files", _AGAIN)
    if outside := sorted({name for name in found.values() if Path(name).name != name}):
        raise CheckpointError(index, f"names {outside[0]!r}, which is not a file beside it", _AGAIN)
    return found


def enumerated(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which is whole as far as its size tells."""
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        text = file.read(length) if length <= min(size - 8, _LONGEST_HEADER) else b""
    if size == 0:
        raise CheckpointError(path, "is empty", _AGAIN)
    if text[:1] != b"{":
        raise CheckpointError(path, "is not a safetensors file, or is cut within its header", _AGAIN)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        places = {name: [8 + length + at for at in entry["data_offsets"]] for name, entry in entries.items()}
        tensors = {
            name: Tensor(name, path, entry["dtype"], tuple(entry["shape"]), *places[name])
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path, "has a damaged header", _AGAIN) from error
    needed = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != needed:
        fault = "is cut" if size < needed else "is longer than it should be"
        raise CheckpointError(path, f"{fault}: {size:,} bytes, and its header counts {needed:,}", _AGAIN)
    return tensors


def _check_pickle(path: Path) -> None:
    """As far as can be told without unpickling."""
    refuse_pointer(path)
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(0, 2)
        file.seek(-min(file.tell(), 1 << 16), 2)
        end = file.read()
    if not begin:
        raise CheckpointError(path, "is empty", _AGAIN)
    if begin[:2] == b"PK" and b"PK\x05\x06" not in end:
        raise CheckpointError(path, "is cut: its archive has no end", _AGAIN)
    if begin[:2] not in (b"PK", b"\x80\x02"):
        raise CheckpointError(path, "is not a file that torch wrote", _AGAIN)


def _check_float(name: str, tensor: Tensor) -> None:
    if is_old_buffer(name):
        return
    if _QUANTISED.search(name):
        raise CheckpointError(tensor.file, f"{name}: its weights are quantised", _FLOAT)
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(tensor.file, f"{name} is stored as {tensor.dtype}, quantised", _FLOAT)
    if tensor.end - tensor.start != math.prod(tensor.shape) * _FLOATS[tensor.dtype]:
        raise CheckpointError(tensor.file, f"has a damaged header: {name} has more or fewer bytes than numbers", _AGAIN)
