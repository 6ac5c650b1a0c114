"""A model as a stream of slots: what enters each, and what each adds to the residual.

Runs whole unpadded sequences without a cache, causally, exactly as the model's own forward does. Everything that
touches the parent layer by layer (fitting, distilling, scoring) goes through here, so its pass is written once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocklib.block import SKIP, Architecture, Block, Choice, Parallel, Subblock
from blocklib.kind import Weights
from blocklib.model import PuzzleNasForCausalLM, PuzzleNasLayer
from blocklib.parent import child_config, own_shape
from blocklib.products import multiply_in, products_of

Rotary = tuple[Tensor, ...] | None
Variant = PuzzleNasLayer | nn.ModuleList
"""A layer, or several in parallel."""


@dataclass(frozen=True)
class SlotPass:
    """One slot of one pass: the residual that enters it, and what the model's own subblock adds. Both [B, T, D]."""

    slot: int
    entering_BTD: Tensor
    delta_BTD: Tensor


def embed(model: PuzzleNasForCausalLM, ids_BT: Tensor, table_VD: Tensor | None = None) -> Tensor:
    """The residual that enters slot 0: the embedded tokens, learned positions added, [B, T, D]. `table_VD` None: by the
    model's own embedding."""
    positions = torch.arange(ids_BT.shape[1], device=ids_BT.device).unsqueeze(0)
    ids_BT = ids_BT.long()
    read_BTD = model.model.embed_tokens(ids_BT) if table_VD is None else nn.functional.embedding(ids_BT, table_VD)
    embedded: Tensor = model.model.placed(read_BTD, positions)[0]
    return embedded


def rotary(model: PuzzleNasForCausalLM, hidden_BTD: Tensor) -> Rotary:
    """The rotary tables of positions 0 to T - 1; None where positions are learned."""
    positions = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device).unsqueeze(0)
    tables: Rotary = model.model.rotary_tables(hidden_BTD, positions)
    return tables


def delta(layer: Variant, entering_BTD: Tensor, tables: Rotary) -> Tensor:
    """The contribution of a whole layer to the residual: the output of its attention plus that of its FFN, whichever
    it has. For a list of layers in parallel it is their sum."""
    total = torch.zeros_like(entering_BTD)
    if isinstance(layer, nn.ModuleList):
        return sum((delta(each, entering_BTD, tables) for each in layer), total)  # type: ignore[arg-type]
    if layer.self_attn is not None:
        total = layer.attended(entering_BTD, position_embeddings=tables, attention_mask=None, cache=None)
    if layer.mlp is not None:
        added = layer.fed_forward(entering_BTD + total)
        total = added if layer.self_attn is None else total + added
    return total


def slot_delta(model: PuzzleNasForCausalLM, slot: int, entering_BTD: Tensor, tables: Rotary) -> Tensor:
    """The residual's change by the model's own subblock at `slot`. The model must be a parent: one layer for each two
    slots."""
    layer: PuzzleNasLayer = model.model.layers[slot // 2]
    if slot % 2 == 0:
        return layer.attended(entering_BTD, position_embeddings=tables, attention_mask=None, cache=None)
    return layer.fed_forward(entering_BTD)


def slots(model: PuzzleNasForCausalLM, ids_BT: Tensor, end: int) -> Iterator[SlotPass]:
    """One pass of a parent over the slots 0 to end - 1."""
    residual = embed(model, ids_BT)
    tables = rotary(model, residual)
    for slot in range(end):
        added = slot_delta(model, slot, residual, tables)
        yield SlotPass(slot, residual, added)
        residual = residual + added


def variant(model: PuzzleNasForCausalLM, choice: Choice, weights: Weights) -> Variant:
    """A layer that does what `choice` does at its slots and nothing else, holding exactly `weights`, and multiplies as
    the model does.

    For blocks in parallel it is a list of layers, whose tensors' names begin with their place in it.
    """
    if isinstance(choice.what, Subblock):
        whole: Block | Parallel = Block(choice.what, SKIP) if choice.role == "attention" else Block(SKIP, choice.what)
    else:
        whole = choice.what
    config = child_config(model.config, Architecture((whole,)), own_shape(model.config), choice.layer)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layers = [PuzzleNasLayer(layer_config, index) for index, layer_config in enumerate(config.per_layer_config)]
    module = nn.ModuleList(layers) if isinstance(whole, Parallel) else layers[0]
    module.load_state_dict(weights, strict=True, assign=True)
    module.requires_grad_(False)
    return multiply_in(products_of(model), module.eval())


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of every call of `module` inside the `with`, in order."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
