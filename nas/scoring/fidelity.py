"""How far a model is from its parent on given tokens, in float32 whatever the models run in.

With the parent's probabilities p, and d, by how much the model's logits exceed the parent's, KL(parent || model) is
log(sum of p e^d) - sum of p d, for d less any constant too. With d less its mean both terms are small where the KL is,
and keep its digits, which a difference of two logarithms loses.

Knows final hidden states and heads; not where they come from. The parent's hidden states are what is kept, never its
logits: those are made again, a few rows at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocklib.compute_dtype import converted_once
from blocklib.errors import NotFiniteError

_TILE_ROWS = 32
"""Rows of the tiles that matrix units multiply, or a multiple of them."""


def numbers_at_once(device: torch.device) -> int:
    """How many numbers to compute together, at most: few enough for a processor's cache, or enough to fill a GPU."""
    return 1 << 20 if device.type == "cpu" else 1 << 26


def logit_rows(device: torch.device, vocabulary: int) -> int:
    """How many tokens' logits to hold together. A row of logits is long, and a head is slow on a few rows, and on a
    number of rows that fills no whole tile of a matrix unit."""
    rows = max(1, 8 * numbers_at_once(device) // vocabulary)
    return rows - rows % _TILE_ROWS if rows > _TILE_ROWS else rows


def cached_rows(logits_RV: Tensor) -> Iterator[slice]:
    """Shares of the rows for whoever reads the same logits several times: on a CPU, those of a share stay in the
    cache of a core; elsewhere there is one share."""
    count, vocabulary = logits_RV.shape
    at_once = max(1, numbers_at_once(logits_RV.device) // (4 * vocabulary)) if logits_RV.is_cpu else max(1, count)
    return (slice(start, start + at_once) for start in range(0, count, at_once))


@dataclass(frozen=True)
class Fidelity:
    """Means over tokens. `kl` is KL(parent || model) in nats; `lm_loss` the next-token cross-entropy in nats;
    `top1_agreement` the share of tokens where both rank the same token first; `hidden_cosine` that of the final,
    normed hidden states."""

    kl: float
    lm_loss: float
    top1_agreement: float
    hidden_cosine: float


class FidelityMeter:
    """Sums one parent's distances to several models over batches. `head` reads the parent's hidden states."""

    def __init__(self, names: list[str], head: nn.Linear):
        self._names, self._head = names, head
        self._sums_N4 = torch.zeros(len(names), 4, dtype=torch.float64)
        self._tokens_N = torch.zeros(len(names), dtype=torch.float64)

    def add(
        self,
        ids_BT: Tensor,
        parent_BTD: Tensor,
        models_BTD: Sequence[Tensor],
        places: Sequence[int] | None = None,
        head: nn.Linear | None = None,
        read: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """One batch: final normed hidden states of the parent and of each model, [B, T, D], and the head of the models;
        None: the parent's.

        `places` says which models these are, by their places among the names; None: all, in order. Every model is to
        be given every batch. `read` is told as it goes how many more tokens of the models are done.
        """
        places = range(len(self._names)) if places is None else places
        head = self._head if head is None else head
        targets = ids_BT[:, 1:].flatten().long()
        # Where the tokens are that have a next one. Only the states of some rows at a time are copied.
        followed = torch.arange(ids_BT.numel(), device=parent_BTD.device).view_as(ids_BT)[:, :-1].flatten()
        rows = logit_rows(parent_BTD.device, head.out_features)
        with converted_once():
            for targets_R, followed_R in zip(targets.split(rows), followed.split(rows), strict=True):
                parent_RD = parent_BTD.flatten(0, 1)[followed_R]
                models_RD = (model_BTD.flatten(0, 1)[followed_R] for model_BTD in models_BTD)
                self._add_rows(targets_R, parent_RD, models_RD, head, places)
                read(len(targets_R) * len(places))
        self._tokens_N[list(places)] += len(targets)

    def _add_rows(
        self,
        targets_R: Tensor,
        parent_RD: Tensor,
        models_RD: Iterable[Tensor],
        head: nn.Linear,
        places: Sequence[int],
    ) -> None:
        parent = _ParentLogits.of(self._head(parent_RD).float())
        for place, model_RD in zip(places, models_RD, strict=True):
            cosine = torch.cosine_similarity(model_RD.float(), parent_RD.float(), dim=-1).sum()
            self._sums_N4[place, 3] += cosine.double().cpu()
            logits_RV = head(model_RD).float()
            for part in cached_rows(logits_RV):
                self._sums_N4[place, :3] += _distances(targets_R[part], parent.rows(part), logits_RV[part])

    def result(self) -> dict[str, Fidelity]:
        """Raises NotFiniteError, naming the model, where a sum is NaN or infinite."""
        found = {}
        for name, row in zip(self._names, self._sums_N4 / self._tokens_N[:, None], strict=True):
            if not torch.isfinite(row).all():
                raise NotFiniteError(
                    f"{name}: its distance to the parent is not finite (KL {row[0]:g}, loss {row[1]:g})"
                )
            found[name] = Fidelity(*(float(value) for value in row))
        return found


@dataclass(frozen=True, eq=False)
class _ParentLogits:
    """The parent's logits in some rows, and what every model is compared with."""

    logits_RV: Tensor
    log_RV: Tensor
    chance_RV: Tensor
    top_R1: Tensor

    @staticmethod
    def of(logits_RV: Tensor) -> "_ParentLogits":
        log_RV = logits_RV.log_softmax(-1)
        return _ParentLogits(logits_RV, log_RV, log_RV.exp(), logits_RV.argmax(-1, keepdim=True))

    def rows(self, part: slice) -> "_ParentLogits":
        return _ParentLogits(self.logits_RV[part], self.log_RV[part], self.chance_RV[part], self.top_R1[part])


def _distances(targets_R: Tensor, parent: _ParentLogits, logits_RV: Tensor) -> Tensor:
    """KL, cross-entropy and how often both rank the same token first, summed over rows: [3], in float64 on the CPU.
    Changes the model's logits."""
    agreed = (logits_RV.gather(1, parent.top_R1) == logits_RV.amax(-1, keepdim=True)).sum()
    changed_RV = logits_RV.sub_(parent.logits_RV)
    # What all logits have in common changes no probability.
    changed_RV -= torch.linalg.vecdot(parent.chance_RV, changed_RV)[:, None]
    log_mean_R = _log_mean_exp(parent.chance_RV, parent.log_RV, changed_RV)
    kl = (log_mean_R - torch.linalg.vecdot(parent.chance_RV, changed_RV)).sum()
    at_R1 = targets_R[:, None]
    loss = (log_mean_R - (changed_RV.gather(1, at_R1) + parent.log_RV.gather(1, at_R1)).squeeze(1)).sum()
    return torch.stack([kl, loss, agreed.float()]).double().cpu()


def _log_mean_exp(chance_RV: Tensor, log_RV: Tensor, changed_RV: Tensor) -> Tensor:
    """The logarithm of the mean of e to the changes, weighted by chances, whose logarithms are `log_RV`."""
    found_R = torch.linalg.vecdot(chance_RV, changed_RV.expm1()).log1p()
    # That keeps all digits of small changes, and overflows where one is above 88.
    return found_R if found_R.isfinite().all() else (log_RV + changed_RV).logsumexp(-1)
