"""What every kind of subblock answers. One file per kind implements it; `blocklib/kinds.py` writes them out in a table.

A kind is stateless. Tensors go by the names they have inside a decoder layer, such as `self_attn.o_proj.weight`; the
norm a subblock reads through is part of it. Legend of shape suffixes: B batch, T tokens, D hidden, H query heads,
K KV heads, E head dim, F FFN width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from blocklib.block import Subblock
from blocklib.shape import Shape

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ParentLayer:
    """One layer of the parent, as a kind sees it when it makes first weights.

    `contribution_F` is how much each FFN channel contributes to the layer's output on the calibration tokens
    (`blocklib/importance.py`).
    """

    weights: Weights
    contribution_F: Tensor


class Kind(ABC):
    """One way to fill a slot."""

    output_projection: ClassVar[str | None] = None
    """The linear layer whose output is the subblock's; None where there is nothing to fit or train."""

    module: ClassVar[type[nn.Module] | None] = None
    """What runs it in a decoder layer; None where nothing does."""

    @abstractmethod
    def check(self, subblock: Subblock, shape: Shape) -> None:
        """Raise ValueError, saying what would be right, where a parent of this shape cannot hold `subblock`."""

    @abstractmethod
    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        """The entries of the child's `per_layer_config` that ask for it."""

    @abstractmethod
    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        """Parameters by arithmetic, its norm included."""

    @abstractmethod
    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        """Weights taken from the parent layers it spans, before any fitting or training."""

    def kv_heads(self, subblock: Subblock) -> int:
        """KV heads it keeps in the cache per token."""
        return 0
