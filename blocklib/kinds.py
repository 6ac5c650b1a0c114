"""Every kind there is, written out. Adding one is a file of its own and a line here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from blocklib.attention.gqa import GroupedQuery
from blocklib.attention.linear import LinearAttentionKind
from blocklib.attention.window import Window
from blocklib.block import SKIP, Architecture, Block, Choice, Role, Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import Dense
from blocklib.ffn.dip import DynamicInputPruning
from blocklib.ffn.fff import Fast
from blocklib.ffn.fuse import Fuse
from blocklib.ffn.linear import LinearFFNKind
from blocklib.ffn.moe import Experts
from blocklib.ffn.pkm import ProductKeys
from blocklib.ffn.topk import TopK
from blocklib.ffn.ultra import Ultra
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape
from blocklib.skip import Skip
from blocklib.tables import Embedding, Head, Tables

ATTENTION: dict[str, Kind] = {
    "kv": GroupedQuery(),
    "window": Window(),
    "linear": LinearAttentionKind(),
    "skip": Skip("attention"),
}
FFN: dict[str, Kind] = {
    "ffn": Dense(),
    "linear": LinearFFNKind(),
    "skip": Skip("mlp"),
    "dip": DynamicInputPruning(by_threshold=False),
    "dip_threshold": DynamicInputPruning(by_threshold=True),
    "moe": Experts(sigma=False),
    "sigma_moe": Experts(sigma=True),
    "topk": TopK(),
    "pkm": ProductKeys(softmax=False),
    "pkm_softmax": ProductKeys(softmax=True),
    "fff": Fast(),
    "ultra": Ultra(),
    "fuse": Fuse(fold_norms=True),
    "fuse_last": Fuse(fold_norms=False),
}

TABLES: dict[Role, Kind] = {"tables": Tables(), "embedding": Embedding(), "head": Head()}
_BY_ROLE: dict[Role, dict[str, Kind]] = {
    "attention": ATTENTION,
    "ffn": FFN,
    **{role: {role: kind} for role, kind in TABLES.items()},
}

# The modules that `attention_kind` and `ffn_kind` of a child's configuration name.
ATTENTION_MODULES = {name: kind.module for name, kind in ATTENTION.items() if kind.module is not None}
FFN_MODULES = {name: kind.module for name, kind in FFN.items() if kind.module is not None}


def kind_of(role: Role, subblock: Subblock) -> Kind:
    """The kind of a subblock. Raises SubblockError naming the kinds its slot can hold."""
    kinds = _BY_ROLE[role]
    if subblock.kind not in kinds:
        raise SubblockError(f"{subblock}: there is no kind {subblock.kind!r} of {role}; kinds: {', '.join(kinds)}")
    return kinds[subblock.kind]


def check(choice: Choice, shape: Shape) -> None:
    """Raise SubblockError where a parent of this shape cannot hold `choice`."""
    if choice.end_layer > shape.layers:
        raise SubblockError(f"{choice} reaches past the parent's last layer, {shape.layers - 1}")
    for role, subblock in choice.subblocks:
        kind_of(role, subblock).check(subblock, shape)
        if subblock.precision and subblock.kind == SKIP.kind:
            raise SubblockError(f"{subblock}: an empty slot holds no weights, so it has no precision; write skip")


def parent_architecture(shape: Shape) -> Architecture:
    """The architecture every search starts from."""
    return Architecture((parent_block(shape),) * shape.layers)


def parent_block(shape: Shape) -> Block:
    """Each of its blocks."""
    return Block(Subblock("kv", str(shape.kv_heads)), Subblock("ffn", str(shape.ffn_width)))


def parameters(architecture: Architecture, shape: Shape) -> int:
    """Parameters of the assembled child by arithmetic, embedding, final norm and head included."""
    fixed = 0 if architecture.tables else shape.fixed_parameters
    return fixed + sum(choice_parameters(choice, shape) for choice in architecture.choices())


def choice_parameters(choice: Choice, shape: Shape) -> int:
    return sum(kind_of(role, subblock).parameters(subblock, shape) for role, subblock in choice.subblocks)


def choice_touched(choice: Choice, shape: Shape, tokens: int) -> float:
    """Parameters read by one pass over `tokens` tokens; at one token, the active ones."""
    return sum(kind_of(role, subblock).touched(subblock, shape, tokens) for role, subblock in choice.subblocks)


def choice_kv_values(choice: Choice, shape: Shape, context: int) -> int:
    """Numbers, keys and values together, that the cache of one sequence of `context` tokens holds."""
    total = 0
    for part in choice.parts:
        assert isinstance(part.what, Subblock)
        kind, window = kind_of(part.role, part.what), shape.window(part.layer)
        seen = context if window is None else min(context, window - 1)
        total += 2 * kind.kv_heads(part.what, shape) * shape.head_dim * kind.cached_tokens(part.what, seen)
    return total


def mean_kv_values(choice: Choice, shape: Shape, context: int) -> int:
    """The same of what may stand in any layer: the mean over the parent's layers, rounded up."""
    if not shape.local_layers:
        return choice_kv_values(choice, shape, context)
    values = [choice_kv_values(replace(choice, layer=layer), shape, context) for layer in range(shape.layers)]
    return -(-sum(values) // shape.layers)


def control(subblock: Subblock, shape: Shape) -> Subblock | None:
    """The dense FFN of the same active width as a sparse one, in hidden values; None where `subblock` is not sparse."""
    kind = kind_of("ffn", subblock)
    if not kind.is_sparse:
        return None
    width = (kind.touched(subblock, shape, 1) - shape.subblock_norm_parameters) / (shape.ffn_matrices * shape.hidden)
    return Subblock("ffn", str(min(shape.ffn_width, max(1, round(width)))))


def layer_config(block: Block, window: int | None = None) -> dict[str, Any]:
    """The `per_layer_config` entry of a child's layer that is `block`. `window`: so many tokens are seen by the
    attention of the parent's layer in its place, and by this one at most; None: all."""
    entries: dict[str, Any] = {}
    skipped: list[str] = []
    for role, subblock in Choice(0, "block", block).subblocks:
        asked = kind_of(role, subblock).layer_config(subblock)
        skipped += asked.pop("skip", [])
        entries |= asked
    if window is not None and kind_of("attention", block.attention).keeps_cache:
        entries["sliding_window"] = min(window, entries.get("sliding_window", window))
    return entries | {"skip": skipped}


def first_weights(choice: Choice, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
    """First weights of every subblock of `choice`, from the parent layers it spans."""
    weights: dict[str, Tensor] = {}
    for role, subblock in choice.subblocks:
        spanned = layers[:1] if role == "attention" else layers
        weights |= kind_of(role, subblock).first_weights(subblock, spanned, shape)
    return weights


def is_trainable(choice: Choice) -> bool:
    """Whether any of its subblocks holds weights."""
    return any(kind_of(role, subblock).module is not None for role, subblock in choice.subblocks)
