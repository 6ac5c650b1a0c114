"""The embedding and the head, with the final norm: what every child holds around its layers.

They are options only where precisions are chosen. A tied head is the embedding, stored once: `tables`. Two matrices are
`embedding` and `head`, each in a precision of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from blocklib.block import Architecture, Choice, Role, Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer, Weights
from blocklib.shape import Shape

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class LogitHead(nn.Linear):
    """The head: a matrix [vocabulary, hidden], and the constant that logits are divided by."""

    def __init__(self, config: Any, **where: Any):
        super().__init__(config.hidden_size, config.vocab_size, bias=False, **where)
        self.divisor = config.logits_scaling

    def product(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states)

    def forward(self, hidden_states: Tensor) -> Tensor:
        logits = self.product(hidden_states)
        return logits if self.divisor == 1 else logits / self.divisor


class Tables(Kind):
    """Both of them."""

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.size or subblock.parts:
            raise SubblockError(f"{subblock}: it has no size of its own; write {subblock.kind}@q8_0")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.fixed_parameters

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        """All of the head and the norm; a pass reads a row of the embedding for each token, which is left out."""
        return shape.vocabulary * shape.hidden + shape.norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        raise SubblockError(f"{subblock}: it is the parent's own; nothing is built for it")


class Embedding(Tables):
    """A matrix, whose rows are read one by one."""

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return (shape.vocabulary + shape.positions) * shape.hidden

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        return 0


class Head(Tables):
    """A matrix of its own, and the norm before it."""

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.vocabulary * shape.hidden + shape.norm_parameters


@dataclass(frozen=True, eq=False)
class Ends:
    """The matrices that a model begins and ends with, [vocabulary, hidden]; None: the parent's own."""

    embedding_VD: Tensor | None = None
    head_VD: Tensor | None = None

    @staticmethod
    def of(held: Iterable[tuple[Choice, Weights]]) -> "Ends":
        """Those of tables, each with its tensors by their names in the model."""
        weights: dict[str, Tensor] = {}
        for choice, tensors in held:
            weights |= {HEAD: tensors[EMBEDDING]} if choice.role == "tables" else {}
            weights |= tensors
        return Ends(weights.get(EMBEDDING), weights.get(HEAD))

    def head(self, config: Any) -> nn.Linear | None:
        """The head of a model of that configuration, which holds the matrix and copies nothing."""
        if self.head_VD is None:
            return None
        head = LogitHead(config, device="meta")
        head.load_state_dict({"weight": self.head_VD}, assign=True)
        return head.requires_grad_(False)


def table_names(role: Role, tied: bool) -> tuple[str, ...]:
    """The matrices of tables of that role, by their names in a model."""
    if role == "tables":
        return (EMBEDDING,) if tied else (EMBEDDING, HEAD)
    return (EMBEDDING,) if role == "embedding" else (HEAD,)


def table_precisions(architecture: Architecture, tied: bool) -> dict[str, str]:
    """The precision of each matrix that has one of its own, by its name in a model."""
    return {
        name: choice.precision for choice in architecture.table_choices() for name in table_names(choice.role, tied)
    }
