"""Warnings about an answer that is right, but may not be the one that was meant.

Knows rows only. A budget that limits nothing is answered with the parent, one that leaves hardly anything with a model
that can do hardly anything: both are kept, with a sentence.
"""

import math
from collections.abc import Sequence

from blocklib.block import SKIP, Architecture
from db import models
from nas.job.stored import parent_totals
from nas.job.units import Limit, exact_quantity, format_quantity
from nas.solve.budget_loop import limits_of

_ROUNDING = 1e-4
"""Nats by which float32 may miss the loss of chance, ln(vocabulary)."""
_MIX_TOKENS = ("kv", "window")
"""Kinds of attention that read other tokens."""


def cautions(search: models.SearchRow, trial: models.TrialRow) -> tuple[str, ...]:
    """A sentence each, about the trial's budget and about what its architecture lacks."""
    return (*of_budget(search, limits_of(trial)), *of_architecture(trial.architecture), *of_parent(trial))


def of_budget(search: models.SearchRow, budget: Sequence[Limit]) -> tuple[str, ...]:
    """The limits that the parent itself meets, as what it takes is known."""
    whole = parent_totals(search)
    return tuple(said for limit in budget if (said := _limits_nothing(limit, whole.get(limit.row.column))))


def of_architecture(text: str) -> tuple[str, ...]:
    architecture = Architecture.parse(text)
    subblocks = [each for choice in architecture.choices() for _, each in choice.subblocks if not choice.is_table]
    if all(subblock == SKIP for subblock in subblocks):
        return ("no layer is left: the child is only the embedding and the head; give a larger budget",)
    if not any(subblock.kind in _MIX_TOKENS for subblock in subblocks):
        return ("no attention is left: the child cannot see earlier tokens; give a larger budget",)
    return ()


def of_parent(trial: models.TrialRow) -> tuple[str, ...]:
    """The parent's loss on the evaluation text is known with the first child that is built."""
    loss, vocabulary = trial.parent_lm_loss, trial.parent_vocabulary
    if loss is None or vocabulary is None or loss < math.log(vocabulary) - _ROUNDING:
        return ()
    return (
        f"the parent predicts no better than chance: perplexity {math.exp(min(loss, 700)):,.0f} of {vocabulary:,} "
        "tokens, and its children will be no better. Check the parent's weights, and whether the "
        "text is in its language",
    )


def _limits_nothing(limit: Limit, parent: float | None) -> str | None:
    """A limit at the parent's own value is one on purpose."""
    if not parent:
        return None
    asked = limit.absolute(parent)
    if asked >= parent if limit.at_least else asked <= parent:
        return None
    said = limit.text if limit.relative else exact_quantity(limit.metric, limit.value)
    side, takes = ("less", "reaches") if limit.at_least else ("more", "takes")
    return (
        f"{limit.metric} {said} is {side} than the parent {takes}, {format_quantity(limit.metric, parent)}: it limits "
        "nothing, because the parent itself meets it"
    )
