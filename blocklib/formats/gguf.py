"""A child as a GGUF file, which llama.cpp and everything built on it (Ollama, LM Studio, ...) loads.

A subblock's matrices have the type of its precision, or of the file's where it has none. A file is written tensor by
tensor: it needs the memory of one layer's queries and keys beside the model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.block import Architecture, Choice, Subblock
from blocklib.families import positions_of
from blocklib.formats.folded import folded
from blocklib.formats.gguf_carrier import Carrier, carrier_of, check_gguf, kv_heads_of
from blocklib.formats.gguf_tensors import TABLES, fixed_tensors, layer_tensors
from blocklib.formats.gguf_types import PRECISIONS, precision_type, quantise, stored_bytes, tensor_type
from blocklib.formats.gguf_vocabulary import Vocabulary, add_vocabulary, dummy_vocabulary
from blocklib.formats.reblock import MixerLayer, Needs, reblock
from blocklib.formats.subblocks import subblocks_of, tensor_shapes, width_of
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import model_with, own_shape
from blocklib.shape import Shape
from blocklib.tables import EMBEDDING, HEAD, table_names, table_precisions

__all__ = [
    "PRECISIONS",
    "as_stored",
    "check_gguf",
    "gguf_bytes",
    "gguf_embedding_bytes",
    "gguf_fixed_bytes",
    "gguf_head_bytes",
    "stored_types",
    "write_gguf",
    "write_random_gguf",
]

_TILE_ROWS = 64
"""Rows of random numbers that are quantised; a matrix repeats them."""


Stored = Mapping[str, Tensor]
"""Matrices as they lie in a file, uint8 [rows, bytes of a row], by their names in the child."""


@dataclass(frozen=True)
class GgufModel:
    """A file without its vocabulary and weights: sizes, layers, architecture, the precision of whatever has none of its
    own, and those of the tables by their names in a model. As far as it is written, `type_bytes` are the bytes of all
    matrices of a type, by its name, and `named` is the precision that the file is named after."""

    config: PuzzleNasConfig
    carrier: Carrier
    layers: tuple[MixerLayer, ...]
    precision: str
    tables: Mapping[str, str]
    type_bytes: Mapping[str, int] = field(default_factory=dict)
    named: str = ""

    @property
    def is_mixed(self) -> bool:
        """Whether any of its matrices has a precision of its own."""
        parts = [part for layer in self.layers for part in (layer.mixer, layer.ffn) if part is not None]
        return bool(self.tables) or any(part.precision for part in parts)

    @property
    def precisions(self) -> frozenset[str]:
        """Those of its matrices."""
        parts = [part for layer in self.layers for part in (layer.mixer, layer.ffn) if part is not None]
        own = [self.tables.get(name, "") for name in table_names("tables", bool(self.config.tie_word_embeddings))]
        return frozenset(each or self.precision for each in [*own, *(part.precision for part in parts)])

    @property
    def widths(self) -> tuple[int, ...]:
        """The FFN width of each layer, 0 where there is none."""
        return tuple(layer.zero_width or (_width(layer.ffn) if layer.ffn else 0) for layer in self.layers)


def write_gguf(
    path: Path,
    child: PuzzleNasForCausalLM,
    precision: str,
    vocabulary: Vocabulary,
    about: Mapping[str, str | int] | None = None,
    stored: Stored | None = None,
) -> GgufModel:
    """Write the child's own weights. `about` are `general.*` keys, such as `name` and `license`; `stored` are matrices
    that are rounded already, each to the type that it has in this file.

    Raises UnsupportedFormatError where llama.cpp cannot run the child, MissingLlamaCppError where only it can quantise.
    """
    architecture = Architecture.parse(child.config.architecture)
    carrier_of(child.config, architecture)  # It may carry less than what is folded.
    child = folded(child)
    model = _model(child.config, architecture, precision)
    placed = {part.choice: part for part in subblocks_of(child)}
    rounded = dict(stored or {})

    def rows_of(choice: Choice) -> dict[str, Tensor]:
        own = f"model.layers.{placed[choice].layer}."
        return {name: rounded[own + name] for name in placed[choice].weights if own + name in rounded}

    weights = _Weights(child.state_dict(), lambda choice: placed[choice].weights)
    return _write(path, model, vocabulary, lambda: _tensors(model, weights, _Weights(rounded, rows_of)), about or {})


def write_random_gguf(path: Path, config: PuzzleNasConfig, architecture: Architecture, precision: str) -> GgufModel:
    """Write a model of the same tensors and sizes as `write_gguf` does, with random weights and a vocabulary without
    meaning. `config` is the parent's. For timing: a matrix repeats a few random rows, and norms are ones."""
    if architecture.has_own_head and config.tie_word_embeddings:
        config = PuzzleNasConfig.from_dict(config.to_dict() | {"tie_word_embeddings": False})
    model = _model(config, architecture, precision)
    shape = own_shape(config)

    def weights_of(choice: Choice) -> dict[str, Tensor]:
        return {name: torch.empty(size, device="meta") for name, size in tensor_shapes(choice, shape).items()}

    table = torch.empty((shape.vocabulary, shape.hidden), device="meta")
    fixed = {
        EMBEDDING: table,
        HEAD: table,
        "model.norm.weight": torch.empty(shape.hidden, device="meta"),
    }
    vocabulary = dummy_vocabulary(shape.vocabulary)
    return _write(path, model, vocabulary, lambda: _tensors(model, _Weights(fixed, weights_of)), {"name": "random"})


def stored_types(config: PuzzleNasConfig, precision: str) -> dict[str, gguf.GGMLQuantizationType]:
    """The type of every tensor of a child in a file of this precision, by its name in the child, where the tensor is
    one of the tables or of a layer. `config` is the child's."""
    architecture, shape = Architecture.parse(config.architecture), own_shape(config)
    own, size = table_precisions(architecture, shape.tied), (shape.vocabulary, shape.hidden)
    found = {
        name: _table_type(name, size, own.get(name, ""), precision, shape.tied)
        for name in table_names("tables", shape.tied)
    }
    for index, (layer, block) in enumerate(architecture.placed()):
        for part in Choice(layer, "block", block).parts:
            for name, sizes in tensor_shapes(part, shape).items():
                found[f"model.layers.{index}.{name}"] = tensor_type(sizes, part.precision or precision)
    return found


@torch.no_grad()
def as_stored(child: PuzzleNasForCausalLM, precision: str, stored: Stored | None = None) -> PuzzleNasForCausalLM:
    """The child in float32 with its weights rounded as a file of this precision rounds them; those that are `stored`
    already are read from there."""
    child = folded(child)
    tied = bool(child.config.tie_word_embeddings)
    types, there = stored_types(child.config, precision), stored or {}
    rounded: dict[str, Tensor] = {}
    for name, tensor in child.state_dict().items():
        if name == HEAD and tied:
            continue
        type = types.get(name, gguf.GGMLQuantizationType.F32)
        if name in there:
            rounded[name] = torch.from_numpy(gguf.dequantize(there[name].numpy(), type)).reshape(tensor.shape)
            continue
        read = gguf.dequantize(quantise(tensor.detach().float().cpu().numpy(), type), type)
        rounded[name] = torch.from_numpy(read).reshape(tensor.shape)
    if tied:
        rounded[HEAD] = rounded[EMBEDDING]
    return model_with(child.config, rounded)


def gguf_bytes(choice: Choice, shape: Shape, precision: str) -> int:
    """Bytes of a choice's tensors in a file whose subblocks without a precision of their own have this one.

    Subblocks of zeros, which llama.cpp needs beside some (`reblock.py`), come on top. They depend on the whole child:
    about 3 * hidden * 32 numbers for each attention or linear map that no FFN follows, and 4 * hidden * head_dim in a
    first layer without attention.
    """
    return sum(
        stored_bytes(size, tensor_type(size, part.precision or precision))
        for part in choice.parts
        for size in tensor_shapes(part, shape).values()
    )


def gguf_head_bytes(shape: Shape, precision: str, is_chosen: bool = False) -> int:
    """Bytes of the head, which may be the embedding as well, and of the final norm: those that every pass reads.

    `is_chosen`: the tables have that precision for themselves; else it is the file's, which spares the head.
    """
    table = (shape.vocabulary, shape.hidden)
    norm = stored_bytes((shape.hidden,), gguf.GGMLQuantizationType.F32)
    return stored_bytes(table, tensor_type(table, precision, is_head=not is_chosen)) + norm


def gguf_fixed_bytes(shape: Shape, precision: str, is_chosen: bool = False) -> int:
    """Bytes of embedding, head and final norm in the file. (llama3 scaling adds head_dim / 2 floats.)"""
    embedding = 0 if shape.tied else gguf_embedding_bytes(shape, precision)
    return embedding + gguf_head_bytes(shape, precision, is_chosen)


def gguf_embedding_bytes(shape: Shape, precision: str) -> int:
    """Bytes of an embedding that is not the head."""
    table = (shape.vocabulary, shape.hidden)
    return stored_bytes(table, tensor_type(table, precision))


def _table_type(name: str, size: tuple[int, ...], own: str, precision: str, tied: bool) -> gguf.GGMLQuantizationType:
    """The type of a table by its name in a model: of its own precision, or of the file's, which spares the head."""
    return tensor_type(size, own or precision, is_head=not own and name == table_names("tables", tied)[-1])


def _model(config: PuzzleNasConfig, architecture: Architecture, precision: str) -> GgufModel:
    zero_width = max(32, gguf.GGML_QUANT_SIZES[precision_type(precision)][0])
    carrier = carrier_of(config, architecture)
    needs = Needs(zero_width, carrier.attention_everywhere)
    parts = [part for choice in architecture.choices() for part in choice.parts if not part.is_table]
    tables = table_precisions(architecture, bool(config.tie_word_embeddings))
    return GgufModel(config, carrier, reblock(parts, needs), precision, tables)


@dataclass(frozen=True, eq=False)
class _Named:
    """A tensor by its name in the file, maybe on the meta device, the precision that was asked for, and its type there;
    `rows`: it is rounded already."""

    name: str
    tensor: Tensor
    precision: str
    type: gguf.GGMLQuantizationType
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Weights:
    """Where tensors come from: the tables and the final norm, and those of a subblock by their names in a layer."""

    fixed: dict[str, Tensor]
    of: Callable[[Choice], dict[str, Tensor]]


_NONE = _Weights({}, lambda choice: {})


def _tensors(model: GgufModel, weights: _Weights, stored: _Weights = _NONE) -> Iterator[_Named]:
    shape, ours = own_shape(model.config), {theirs: name for name, theirs in TABLES.items()}
    rows = fixed_tensors(stored.fixed, model.config)
    for name, tensor in fixed_tensors(weights.fixed, model.config).items():
        own = ours.get(name, name)
        type = _table_type(own, tuple(tensor.shape), model.tables.get(own, ""), model.precision, shape.tied)
        precision = model.tables.get(own, model.precision)
        yield _Named(name, tensor, precision, type, rows.get(name) if tensor.dim() == 2 else None)
    for index, layer in enumerate(model.layers):
        rows = layer_tensors(layer, stored.of, model.carrier, shape)
        for name, tensor in layer_tensors(layer, weights.of, model.carrier, shape).items():
            part = layer.ffn if name.startswith("ffn") else layer.mixer
            precision = (part.precision if part else "") or model.precision
            type = tensor_type(tuple(tensor.shape), precision)
            yield _Named(f"blk.{index}.{name}", tensor, precision, type, None if part is None else rows.get(name))


def _write(
    path: Path,
    model: GgufModel,
    vocabulary: Vocabulary,
    tensors: Callable[[], Iterator[_Named]],
    about: Mapping[str, str | int],
) -> GgufModel:
    """The model as it is written. `tensors` is asked twice, for the sizes and for the numbers, so that none of them is
    kept."""
    sizes = [(one.name, tuple(one.tensor.shape), one.precision, one.type) for one in tensors()]
    by_type, by_precision = Counter[str](), Counter[str]()
    for _, size, precision, type in sizes:
        if len(size) > 1:
            by_type[type.name.lower()] += stored_bytes(size, type)
            by_precision[precision] += stored_bytes(size, type)
    named = by_precision.most_common(1)[0][0] if model.is_mixed else model.precision
    model = replace(model, type_bytes=dict(by_type.most_common()), named=named)
    writer = gguf.GGUFWriter(path, model.carrier.name)
    for key, value in about.items():
        if isinstance(value, str):
            writer.add_string(f"general.{key}", value)
        else:
            writer.add_uint32(f"general.{key}", value)
    _add_sizes(writer, model)
    add_vocabulary(writer, vocabulary)
    for name, size, _, type in sizes:
        writer.add_tensor_info(name, size, np.dtype(np.float32), stored_bytes(size, type), type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tiles: dict[tuple[int, gguf.GGMLQuantizationType], NDArray[Any]] = {}
    for one in tensors():
        writer.write_tensor_data(_stored(one, tiles))
    writer.close()
    return model


def _stored(one: _Named, tiles: dict[tuple[int, gguf.GGMLQuantizationType], NDArray[Any]]) -> NDArray[Any]:
    """The tensor as it lies in the file; random numbers, the rows of a tile again and again, if it is meta."""
    tensor, type = one.tensor, one.type
    if one.rows is not None:
        return one.rows.numpy()
    if not tensor.is_meta:
        return quantise(tensor.detach().float().cpu().numpy(), type)
    if tensor.dim() == 1:
        return np.ones(tensor.shape, dtype=np.float32)
    rows, numbers = tensor.shape
    if (numbers, type) not in tiles:
        normal = np.random.default_rng(0).standard_normal((_TILE_ROWS, numbers), dtype=np.float32)
        tiles[numbers, type] = quantise(normal / np.float32(numbers**0.5), type)
    return np.resize(tiles[numbers, type], (rows, tiles[numbers, type].shape[1]))


def _add_sizes(writer: gguf.GGUFWriter, model: GgufModel) -> None:
    """The keys that llama.cpp builds its graph from."""
    config, shape, layers = model.config, own_shape(model.config), model.layers
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    heads = [1 if layer.zero_mixer else shape.heads if layer.mixer else 0 for layer in layers]
    kv_heads = [kv_heads_of(layer) for layer in layers]
    widths = list(model.widths)
    writer.add_type("model")
    writer.add_file_type(_file_type(model.named))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(positions_of(config))
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(layers))
    writer.add_head_count(heads if model.carrier.by_layer else heads[0])
    writer.add_head_count_kv(kv_heads if model.carrier.by_layer else kv_heads[0])
    writer.add_feed_forward_length(widths if model.carrier.by_layer else widths[0])
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(
            int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        )
        for bound in ("fast", "slow"):
            if rope.get(f"beta_{bound}"):
                getattr(writer, f"add_rope_scaling_yarn_beta_{bound}")(float(rope[f"beta_{bound}"]))


def _width(ffn: Choice) -> int:
    assert isinstance(ffn.what, Subblock)
    return width_of(ffn.what)


def _file_type(precision: str) -> gguf.LlamaFileType:
    """llama.cpp's name for a whole file of mostly this precision. `llama-quantize` writes the one that was asked for,
    whatever rows of other lengths fall back to. It has no name for other mixtures than its own: a file of mixed types
    is named after the precision of most bytes."""
    name, known = precision_type(precision).name, gguf.LlamaFileType.__members__
    return known["ALL_F32"] if name == "F32" else known.get(f"MOSTLY_{name}") or known[f"MOSTLY_{name}_S"]
