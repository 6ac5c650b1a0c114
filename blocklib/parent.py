"""A checkpoint seen through its family: our own model with the parent's weights, its shape, its digest.

Reads checkpoints through transformers' own classes, local folders and hub ids alike, and runs no code of theirs. Never
writes.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.block import Architecture, Choice
from blocklib.checkpoint import inspect
from blocklib.errors import CheckpointError
from blocklib.families import attention_scale, own_names
from blocklib.hub import folder_of
from blocklib.kind import Weights
from blocklib.kinds import layer_config, parent_architecture
from blocklib.loading import load, readable
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.shape import Shape

_COMPARED = 8
"""Tokens on which the parent is held against the checkpoint's own class."""
_ROUNDING = {torch.float32: 1e-3}
"""Tolerance of logits, 0.1 for other dtypes: some families are computed in another order than by their own classes."""


@dataclass(frozen=True)
class Parent:
    """The model we start from. `model` gives bit for bit the logits of the checkpoint's own class.

    `notes` say what of its files was taken otherwise than its configuration has it.
    """

    source: str
    model: PuzzleNasForCausalLM
    shape: Shape
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> Architecture:
        return parent_architecture(self.shape)

    def layer_weights(self, layer: int) -> Weights:
        """The tensors of one layer, by their names inside it."""
        return dict(self.model.model.layers[layer].state_dict())

    def own(self, choice: Choice) -> bool:
        """Whether `choice` is what the parent itself has there."""
        return not choice.is_table and self.architecture.with_(choice) == self.architecture


def load_parent(source: str, dtype: torch.dtype = torch.float32) -> Parent:
    """Load a local folder or a hub id onto the CPU.

    Raises UnsupportedModelError for a family this package does not know, FileNotFoundError for a folder without a
    model, CheckpointError where a file is damaged, a tensor missing, left over or not finite, naming it.
    """
    found = readable(inspect(folder_of(source)))
    loaded = load(found, dtype)
    stored = loaded.state_dict()
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            cause = f"{name} holds NaN or infinite values"
            raise CheckpointError(found.checkpoint.folder, cause, "the checkpoint is damaged")
    weights = own_names(found.config.model_type, stored, found.shape)
    own_config = child_config(found.config, parent_architecture(found.shape), found.shape)
    parent = replace(parent_of(source, own_config, weights), notes=found.notes)
    _check_same(found.checkpoint.folder, parent.model, loaded)
    return parent


@torch.no_grad()
def _check_same(folder: Path, model: PuzzleNasForCausalLM, loaded: Any) -> None:
    """Raise CheckpointError where our model does not compute what the checkpoint's own class does.

    Whatever a configuration holds that we do not know of shows here. On a few tokens, to what rounding may do.
    """
    ids_BT = torch.arange(_COMPARED).remainder(model.config.vocab_size).unsqueeze(0)
    theirs = loaded(ids_BT, use_cache=False).logits.float()
    ours = model(ids_BT, use_cache=False).logits.float()
    if not torch.isfinite(theirs).all():
        raise CheckpointError(folder, "its logits are not finite", "its weights or its config.json are damaged")
    most = _ROUNDING.get(loaded.dtype, 0.1)
    if not torch.allclose(ours, theirs, rtol=most, atol=most * float(theirs.std())):
        raise CheckpointError(
            folder,
            f"{type(loaded).__name__} computes other logits than this package's model of it",
            "its config.json holds something this package does not know; please report it",
        )


def parent_of(source: str, config: PuzzleNasConfig, weights: Weights) -> Parent:
    """The parent from its configuration and weights, which are used as they are, not copied."""
    model = model_with(config, weights)
    shape = own_shape(config)
    return Parent(source, model, shape, _digest(shape, config, weights))


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
    )


def child_config(config: Any, architecture: Architecture, shape: Shape) -> PuzzleNasConfig:
    """The configuration of `architecture`, everything else as `config` (the parent's, of any family) has it."""
    kept = ("max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id",
            "eos_token_id", "rope_parameters", "attention_dropout", "dtype")  # fmt: skip
    values: dict[str, Any] = dict(
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
        hidden_act=shape.hidden_act,
        gated_ffn=shape.gated,
        layer_norm=shape.layer_norm,
        learned_positions=shape.positions > 0,
        attention_scale=getattr(config, "attention_scale", attention_scale(config)),
        tie_word_embeddings=shape.tied and not architecture.has_own_head,
        per_layer_config={
            index: layer_config(block) | {"parallel": joined}
            for index, ((_, block), joined) in enumerate(zip(architecture.placed(), architecture.joined(), strict=True))
        },
        **{name: getattr(config, name) for name in kept if hasattr(config, name)},
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
        # Buffers are not in the state dict, so the rotary table is built anew, off the meta device.
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _digest(shape: Shape, config: PuzzleNasConfig, weights: Weights) -> str:
    """16 hex digits of what the model computes: sizes, rotary settings, and every weight's bytes."""
    computed = (shape, config.rope_parameters, config.rms_norm_eps, config.attention_scale)
    state = hashlib.blake2b(repr(computed).encode())
    for name in sorted(weights):
        tensor = weights[name]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(_bytes_of(tensor))
    return state.hexdigest()[:16]


def _bytes_of(tensor: Tensor) -> memoryview:
    array: NDArray[np.uint8] = tensor.detach().contiguous().view(torch.uint8).numpy()
    return array.data.cast("B")
