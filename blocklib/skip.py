"""`skip`: the slot left empty. The same in an attention and in an FFN slot: nothing to hold, run or train."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class Skip(Kind):
    def __init__(self, part: Literal["attention", "mlp"]):
        self._part = part

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.size:
            raise SubblockError(f"{subblock}: skip takes no number; write skip")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"skip": [self._part]}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return 0

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        return {}
