"""The price of being plain: an answer whose layers are of one size beside the one whose layers may differ.

Both are solved from the same rows, for the same limits. A trial keeps both scores among its details; the real KLs are
those of the two children, as far as they are built.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from db import models
from db.store import Store
from nas.job.units import Limit
from nas.solve.effort import USUAL, Effort
from nas.solve.solve import Measured, proposed, solve
from nas.solve.summary import summary


@dataclass(frozen=True)
class PlainPrice:
    """`score` is that of the plain answer, `other_score` that of `other`, the architecture whose layers may differ,
    None where none was found in time. `is_of_plain_space`: it has the same few options. `trial` is its number, `kl` and
    `other_kl` are the real KLs; each is None where there is none."""

    score: float
    is_of_plain_space: bool
    other: str | None = None
    other_score: float | None = None
    trial: int | None = None
    kl: float | None = None
    other_kl: float | None = None

    @staticmethod
    def of(trial: models.TrialRow) -> "PlainPrice | None":
        """The price that the trial keeps; None if it is not plain."""
        return None if trial.plain is None else PlainPrice(**trial.plain)

    def said(self, metric: str) -> str:
        """In a line; `metric` is the score's, kl or lm_loss."""
        score = {"kl": "predicted KL", "lm_loss": "predicted loss"}[metric]
        if self.other is None or self.other_score is None:
            return "the price of being plain is not known: no answer with layers that may differ was found in time"
        free = "layers that may differ" + (" among the same options" if self.is_of_plain_space else "")
        told = (
            f"being plain costs {self.score - self.other_score:.4f} of {score}: {self.score:.4f} with layers of one "
            f"size, {self.other_score:.4f} with {free} ({summary(self.other)})"
        )
        if self.kl is not None and self.other_kl is not None:
            return f"{told}; {self.kl - self.other_kl:.4f} of real KL: {self.kl:.4f} and {self.other_kl:.4f}"
        return (
            told
            if self.trial is None or self.other_kl is not None
            else f"{told}; to build that: nas build {self.trial}"
        )


def priced(
    store: Store, known: Measured, budget: Sequence[Limit], trial: models.TrialRow, effort: Effort = USUAL
) -> models.TrialRow:
    """The trial, an answer for these limits, with its price if it is plain. The answer that it is held against becomes
    a trial as well."""
    if not known.is_plain:
        return trial
    # A price that no time was left for is computed again.
    if trial.plain is None or trial.plain.get("other") is None:
        details = {"plain": asdict(_price(store, known, budget, trial, effort))}
        if store.is_read_only:
            trial.details = trial.details | details
        else:
            trial = store.update_trial(trial.id, details=details)
    return with_real_kls(store, trial)


def _price(
    store: Store, known: Measured, budget: Sequence[Limit], trial: models.TrialRow, effort: Effort
) -> PlainPrice:
    free = replace(known, is_plain=False)
    try:
        found = solve(free, budget, effort)
    except TimeoutError:
        return PlainPrice(trial.score, known.request.is_plain)
    other = proposed(store, free, found, budget)
    return PlainPrice(trial.score, known.request.is_plain, other.architecture, found.score, other.id)


def with_real_kls(store: Store, trial: models.TrialRow) -> models.TrialRow:
    """The trial with the real KLs of its price as they are known now. Writes nothing."""
    price = PlainPrice.of(trial)
    if price is None:
        return trial
    built = store.trials(trial.search_id, where="kl is not None")
    made = trial.heal_tokens, trial.round_tokens or 0
    others = [one.kl for one in built
              if one.architecture == price.other and (one.heal_tokens, one.round_tokens or 0) == made]  # fmt: skip
    trial.details = trial.details | {
        "plain": asdict(replace(price, kl=trial.kl, other_kl=others[-1] if others else None))
    }
    return trial
