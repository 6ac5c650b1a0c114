"""How good a trial is proven to be, where it was proposed more than once."""

import math

from db.models import TrialRow
from db.same_child import merged


def take_better_proof(row: TrialRow, other: TrialRow) -> None:
    """Write the other's proof into the row if it is better: any proof beats none, one for the budget itself beats one
    for limits near it, and then the smaller gap wins. Details that followed from the older proof go with it."""
    if _unproven(other) < _unproven(row):
        row.bound, row.gap, row.status = other.bound, other.gap, other.status
        row.details = merged(row.details, dict.fromkeys(("solved_for", "explained", "plain")) | other.details)


def _unproven(trial: TrialRow) -> tuple[bool, bool, float]:
    return trial.gap is None, trial.solved_for is not None, math.inf if trial.gap is None else trial.gap
