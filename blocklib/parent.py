"""A checkpoint seen through its family: our own model on the parent's weights, its shape, its digest.

Takes local folders and hub ids alike, and runs no code of theirs. The weights stay in their files until somebody reads
them. Never writes.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.allocator import returned_memory
from blocklib.block import Architecture, Choice
from blocklib.checkpoint import bytes_of_a_number, inspect
from blocklib.compute_dtype import compute_in
from blocklib.errors import CheckpointError
from blocklib.families import MULTIPLIERS, own_settings, unrotated_layers
from blocklib.hub import folder_of
from blocklib.kind import Weights
from blocklib.kinds import layer_config, parent_architecture
from blocklib.loading import Readable, readable
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.products import Products, matrix_type, multiply_in
from blocklib.resident import is_held_whole, is_of_a_layer
from blocklib.same_logits import check_same_logits
from blocklib.shape import Shape
from blocklib.stored_weights import StoredWeights, close_files, mapped
from blocklib.tables import EMBEDDING, HEAD

_PIECE = 1 << 24
"""As many numbers of a tensor are looked at together."""


@dataclass(frozen=True, eq=False)
class Parent:
    """The model we start from. `model` gives bit for bit the logits of the checkpoint's own class in `dtype`.

    `weights` are its tensors by our names, in the type they are stored in; from a checkpoint they are read when asked
    for. `notes` say what of its files was taken otherwise than its configuration has it. `products` is the type that
    `model` multiplies in (`blocklib/products.py`). Picklable, and small then: a worker reads what it needs from the
    files.
    """

    source: str
    config: PuzzleNasConfig
    weights: Mapping[str, Tensor]
    shape: Shape
    digest: str
    dtype: torch.dtype = torch.float32
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    products: Products = "float32"

    @property
    def stored_bytes(self) -> float:
        """The bytes of a number as it is stored, the mean where there are several types. Reads no weight."""
        if isinstance(self.weights, StoredWeights):
            return bytes_of_a_number(self.weights.held.values())
        held = self.weights.values()
        return sum(tensor.nbytes for tensor in held) / sum(tensor.numel() for tensor in held)

    @property
    def architecture(self) -> Architecture:
        return parent_architecture(self.shape)

    @cached_property
    def model(self) -> PuzzleNasForCausalLM:
        """It computes in `dtype` on weights that stay as they are stored, each converted where it is used. Raises
        SettingError where the device does not have the type of its products."""
        return computing(self.at_hand().stored_model(), self.dtype, self.products)

    def stored_model(self) -> PuzzleNasForCausalLM:
        """The model on the weights as they are stored: to be read or copied, or for `computing`. Raises as `on`
        does."""
        held = self.weights.mapped() if isinstance(self.weights, StoredWeights) else dict(self.weights)
        if self.shape.tied:
            held[HEAD] = held[EMBEDDING]
        return model_with(self.config, held)

    def at_hand(self) -> "Parent":
        """The same parent where its weights are there, else on the CPU."""
        return self.on("cpu") if isinstance(self.weights, StoredWeights) else self

    def on(self, device: str, whole: bool | None = None) -> "Parent":
        """The same parent with its weights at hand: on the CPU mapped from its files, else on that device, its layers
        only if that holds them (`blocklib/resident.py`), or as `whole` says. A weight that is computed on as it is
        stored is copied, since a file may place it at an odd address, where the last bits differ.

        Raises CheckpointError where the files are not there, or are others than they were.
        """
        if not isinstance(self.weights, StoredWeights):
            moved = {name: tensor.to(device) for name, tensor in self.weights.items()}
            return replace(self, weights=moved, device=device)
        mapped = self.weights.mapped()
        if whole is None:
            whole = is_held_whole(sum(tensor.nbytes for tensor in mapped.values()), torch.device(device))
        matrices = matrix_type(self.products, self.dtype)
        held = {
            name: tensor.to(device, copy=tensor.dtype == (self.dtype if tensor.ndim == 1 else matrices))
            if whole or not is_of_a_layer(name)
            else tensor
            for name, tensor in mapped.items()
        }
        if self.shape.tied:
            held[HEAD] = held[EMBEDDING]
        return replace(self, weights=held, device=device)

    def whole(self, dtype: torch.dtype | None = None) -> PuzzleNasForCausalLM:
        """The model with all weights in memory of its own, in `dtype`, the parent's where None. Raises as `on` does."""
        return in_type(self.stored_model(), dtype or self.dtype, copy=True)

    def tensor(self, name: str) -> Tensor:
        """One tensor, in `dtype` on the parent's device."""
        held = self.weights[name]
        return held.to(self.device).to(self.dtype, copy=isinstance(self.weights, StoredWeights))

    def layer_weights(self, layer: int, modules: Sequence[str] = ()) -> Weights:
        """The tensors of one layer, by their names inside it, in `dtype`; those of some of its modules, if any."""
        return {inside: self.tensor(name) for inside, name in self._names(layer, modules).items()}

    def stored_weights(self, layer: int, modules: Sequence[str] = ()) -> Weights:
        """The same as they are stored."""
        return {inside: self.weights[name] for inside, name in self._names(layer, modules).items()}

    def _names(self, layer: int, modules: Sequence[str]) -> dict[str, str]:
        """The names of a layer's tensors, by those inside it."""
        prefix = f"model.layers.{layer}."
        names = {name.removeprefix(prefix): name for name in self.weights if name.startswith(prefix)}
        return {inside: name for inside, name in names.items() if not modules or inside.partition(".")[0] in modules}

    def own(self, choice: Choice) -> bool:
        """Whether `choice` is what the parent itself has there."""
        return not choice.is_table and self.architecture.with_(choice) == self.architecture

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "model"}


def load_parent(source: str, dtype: torch.dtype = torch.float32) -> Parent:
    """Look at a local folder or a hub id. Its weights are read once, a piece at a time, and none is kept.

    Raises UnsupportedModelError for a family this package does not know, FileNotFoundError for a folder without a
    model, CheckpointError where a file is damaged, a tensor missing, left over or not finite, naming it.
    """
    found = readable(inspect(folder_of(source)))
    weights = StoredWeights.of(found)
    config = child_config(found.config, parent_architecture(found.shape), found.shape)
    with returned_memory():
        _check_finite(found)
        check_same_logits(found, config, weights, dtype)
        digest = _digest(config, weights, dtype)
        close_files()
    return Parent(source, config, weights, found.shape, digest, dtype, found.notes)


def _check_finite(found: Readable) -> None:
    for tensor in found.tensors.values():
        for piece in _pieces(partial(mapped, tensor)):
            if not torch.isfinite(piece).all():
                cause = f"{tensor.name} holds NaN or infinite values"
                raise CheckpointError(found.checkpoint.folder, cause, "the checkpoint is damaged")


def parent_of(source: str, config: PuzzleNasConfig, weights: Weights) -> Parent:
    """The parent from its configuration and weights, which are used as they are, not copied."""
    dtype = next(iter(weights.values())).dtype
    return Parent(source, config, weights, own_shape(config), _digest(config, weights, dtype), dtype)


def own_shape(config: PuzzleNasConfig) -> Shape:
    """The parent's shape, kept in every configuration we make: the sizes its own layers have."""
    return Shape(
        layers=Architecture.parse(config.architecture).layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config._getattr_without_heterogeneous_validation("num_key_value_heads"),
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        ffn_width=config._getattr_without_heterogeneous_validation("intermediate_size"),
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=config.qk_norm,
        hidden_act=config.hidden_act,
        gated=config.gated_ffn,
        layer_norm=config.layer_norm,
        positions=config.max_position_embeddings if config.learned_positions else 0,
        norm_placement=config.norm_placement,
        joint_qk_norm=config.joint_qk_norm,
        local_layers=tuple(config.local_layers),
        local_window=config.local_window,
    )


def own_steps(config: PuzzleNasConfig) -> dict[str, Any]:
    """The steps that the model takes otherwise than a Llama of its shape, by the names in its configuration. A step
    that a Llama has as well is left out, so that keys and digests do not change when there is a new one."""
    defaults: dict[str, Any] = dict.fromkeys(MULTIPLIERS[1:], 1.0) | {
        "unrotated_layers": [],
        "norms_after": False,
        "joint_qk_norm": False,
        "norms_around": False,
        "zero_centred_norms": False,
        "rounds_embedding_multiplier": False,
        "local_layers": [],
        "local_window": None,
        "local_rope_parameters": None,
    }
    placements = {f"norms_{place}": config.norm_placement == place for place in ("after", "around")}
    found = {name: placements[name] if name in placements else getattr(config, name) for name in defaults}
    return {name: value for name, value in found.items() if value != defaults[name]}


def child_config(config: Any, architecture: Architecture, shape: Shape, first: int = 0) -> PuzzleNasConfig:
    """The configuration of `architecture`, everything else as `config` (the parent's, of any family) has it. `first` is
    the parent's layer that it starts at."""
    kept = ("max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id",
            "eos_token_id", "attention_dropout", "dtype")  # fmt: skip
    unrotated, placed = unrotated_layers(config), zip(architecture.placed(), architecture.joined(), strict=True)
    values: dict[str, Any] = dict(
        unrotated_layers=unrotated,
        architecture=str(architecture),
        num_hidden_layers=len(architecture.joined()),
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn_width,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        qkv_bias=shape.qkv_bias,
        o_bias=shape.o_bias,
        mlp_bias=shape.mlp_bias,
        qk_norm=shape.qk_norm,
        joint_qk_norm=shape.joint_qk_norm,
        norm_placement=shape.norm_placement,
        local_layers=list(shape.local_layers),
        local_window=shape.local_window,
        hidden_act=shape.hidden_act,
        gated_ffn=shape.gated,
        layer_norm=shape.layer_norm,
        learned_positions=shape.positions > 0,
        tie_word_embeddings=shape.tied and not architecture.has_own_head,
        per_layer_config={
            index: layer_config(block, shape.window(first + start))
            | {
                "parallel": joined,
                "rotary": first + start not in unrotated,
                "local": shape.window(first + start) is not None,
            }
            for index, ((start, block), joined) in enumerate(placed)
        },
        **{name: getattr(config, name) for name in kept if hasattr(config, name)},
        **own_settings(config),
    )
    if hasattr(config, "layer_norm_epsilon"):
        values["rms_norm_eps"] = config.layer_norm_epsilon
    return PuzzleNasConfig(**values)


def model_with(config: PuzzleNasConfig, weights: Weights) -> PuzzleNasForCausalLM:
    """A model that holds exactly `weights`, shared with the caller. Every tensor must be there and no other."""
    with torch.device("meta"):
        model: PuzzleNasForCausalLM = PuzzleNasForCausalLM._from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    model.load_state_dict(weights, strict=True, assign=True)
    if not config.learned_positions:
        # Buffers are not in the state dict, so the rotary tables are built anew, off the meta device.
        model.model.make_rotary()
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def computing(
    model: PuzzleNasForCausalLM, dtype: torch.dtype = torch.float32, products: Products = "float32"
) -> PuzzleNasForCausalLM:
    """A model that computes in `dtype`, its products in a type of their own, on the device of its embedding, on the
    weights of `model` as they are there: each is converted where it is used. Raises SettingError where the device does
    not have the type of its products."""
    running = model_with(model.config, model.state_dict())
    if not model.config.learned_positions:
        running.model.make_rotary(running.device)  # Its tables are no weights.
    compute_in(dtype, running, running.device, matrix_type(products, dtype))
    return multiply_in(products, running)


def in_type(
    model: PuzzleNasForCausalLM, dtype: torch.dtype, device: torch.device | str | None = None, copy: bool = False
) -> PuzzleNasForCausalLM:
    """The same model with all weights in one type, on `device`; None: where its embedding is. A weight that is so
    already is shared, unless it is to be a copy."""
    device = model.device if device is None else torch.device(device)
    state, converted = model.state_dict(), dict[int, Tensor]()  # A tied head is the embedding.
    for tensor in state.values():
        if tensor.data_ptr() not in converted:
            converted[tensor.data_ptr()] = tensor.to(device=device, dtype=dtype, copy=copy)
    with device:
        return model_with(deepcopy(model.config), {name: converted[held.data_ptr()] for name, held in state.items()})


def _digest(config: PuzzleNasConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """16 hex digits of what the model computes: sizes, rotary settings, steps of its own, and every weight's bytes in
    `dtype`."""
    computed = (own_shape(config), config.rope_parameters, config.rms_norm_eps, config.attention_scale)
    steps = own_steps(config)
    state = hashlib.blake2b((repr(computed) + (repr(steps) if steps else "")).encode())
    for name in sorted(weights):
        state.update(f"{name} {dtype} {tuple(weights[name].shape)}".encode())
        for piece in _pieces(partial(weights.__getitem__, name)):
            state.update(_bytes_of(piece.to(dtype)))
    return state.hexdigest()[:16]


def _pieces(read: Callable[[], Tensor]) -> Iterator[Tensor]:
    """The numbers of a tensor, some at a time, read anew each time: a file's pages go when nothing maps them."""
    for start in range(0, read().numel(), _PIECE):
        yield read().detach().reshape(-1)[start : start + _PIECE]


def _bytes_of(tensor: Tensor) -> memoryview:
    array: NDArray[np.uint8] = tensor.contiguous().view(torch.uint8).numpy()
    return array.data.cast("B")
