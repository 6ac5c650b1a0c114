"""`tables`: the embedding and the head, with the final norm: what every child holds around its layers.

They are an option only where precisions are chosen. A tied head is the embedding, stored once; an untied one is stored
in the embedding's precision.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer, Weights
from blocklib.shape import Shape

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Tables(Kind):
    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.size or subblock.parts:
            raise SubblockError(f"{subblock}: the tables have no size of their own; write tables@q8_0")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.fixed_parameters

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        """All of the head and the norm; a pass reads a row of the embedding for each token, which is left out."""
        return shape.vocabulary * shape.hidden + shape.norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        raise SubblockError(f"{subblock}: the tables are the parent's own; nothing is built for them")


def head_with(tables: Weights) -> nn.Linear:
    """The head of these tables, which holds their matrix and copies nothing."""
    weight_VD = tables.get(HEAD, tables[EMBEDDING])
    head = nn.Linear(weight_VD.shape[1], weight_VD.shape[0], bias=False, device="meta")
    head.load_state_dict({"weight": weight_VD}, assign=True)
    return head.requires_grad_(False)


def table_names(tied: bool) -> tuple[str, ...]:
    """The matrices, by their names in a model."""
    return (EMBEDDING,) if tied else (EMBEDDING, HEAD)
