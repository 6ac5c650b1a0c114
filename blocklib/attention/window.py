"""`windowN`: the parent's attention, where each token attends to itself and the N - 1 tokens before it.

Longformer, arXiv 2004.05150, section 3.1; Mistral 7B, arXiv 2310.06825, section 2. Its cache keeps only the tokens that
the next token attends to. First weights are the parent's.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blocklib.attention.gqa import GroupedQuery, GroupedQueryAttention
from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class Window(Kind):
    output_projection = "self_attn.o_proj"
    module = GroupedQueryAttention
    keeps_cache = True

    def __init__(self) -> None:
        self._full = GroupedQuery()

    def _whole(self, shape: Shape) -> Subblock:
        return Subblock("kv", str(shape.kv_heads))

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.number < 2:
            raise SubblockError(
                f"{subblock}: a window holds at least two tokens, itself and the one before, as in window512"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"attention_kind": "window", "sliding_window": subblock.number}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return self._full.parameters(self._whole(shape), shape)

    def kv_heads(self, subblock: Subblock, shape: Shape) -> int:
        return shape.kv_heads

    def cached_tokens(self, subblock: Subblock, context: int) -> int:
        return min(context, subblock.number - 1)

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        return self._full.first_weights(self._whole(shape), layers, shape)
