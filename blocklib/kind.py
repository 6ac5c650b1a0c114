"""The interface of every kind of subblock. One file per kind implements it; `blocklib/kinds.py` is the table.

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
    (`blocklib/importance.py`); `ffn_input_ND` is what the FFN reads on them, behind its norm.
    """

    weights: Weights
    contribution_F: Tensor
    ffn_input_ND: Tensor


class Kind(ABC):
    """One way to fill a slot."""

    output_projection: ClassVar[str | None] = None
    """The module that multiplies by one matrix, its `weight`, and whose output is the subblock's; None where least
    squares has nothing to solve for. An nn.Linear's weight is [out, in], any other's [in, out]."""

    module: ClassVar[type[nn.Module] | None] = None
    """The module that runs it in a decoder layer; None if none does."""

    keeps_cache: ClassVar[bool] = False
    """Whether it keeps keys and values of earlier tokens."""

    is_sparse: ClassVar[bool] = False
    """Whether a token uses only a part of its weights."""

    needs_whole_batches: ClassVar[bool] = False
    """Whether parts of a batch train it otherwise than the batch: its module draws random numbers in training, or its
    regulariser looks at all tokens together."""

    def sized(self, subblock: Subblock, shape: Shape) -> Subblock:
        """The full spelling of what a user may spell shorter, relative to a parent of this shape."""
        return subblock

    @abstractmethod
    def check(self, subblock: Subblock, shape: Shape) -> None:
        """Raise SubblockError, saying what would be right, where a parent of this shape cannot hold `subblock`."""

    @abstractmethod
    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        """The entries of the child's `per_layer_config` that ask for it."""

    @abstractmethod
    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        """Parameters by arithmetic, its norm included."""

    @abstractmethod
    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        """Weights taken from the parent layers it spans, before any fitting or training."""

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        """Parameters read by one pass over `tokens` tokens: the expected union, each token choosing for itself.

        At one token these are the active parameters.
        """
        return self.parameters(subblock, shape)

    def runs_as(self, subblock: Subblock) -> Subblock:
        """The subblock that takes the same time; each such is timed once."""
        return subblock

    def kv_heads(self, subblock: Subblock, shape: Shape) -> int:
        """KV heads it keeps in the cache per token."""
        return 0

    def cached_tokens(self, subblock: Subblock, context: int) -> int:
        """The number of `context` tokens that its cache keeps."""
        return context
