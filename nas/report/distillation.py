"""How blockwise distillation went: losses per option over the layers, and curves per kind.

Knows rows of distillations only. Losses are squared errors divided by the squared size of the target: 0 is exact, and 1
is the error of an output of zeros.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from blocklib.block import Choice, Role
from db import models
from db.measured import KnownOption


@dataclass(frozen=True)
class DistilledLine:
    """One option over its layers: mean held-out losses, None where that step was left out. `tokens` are per layer.

    `kept` says which weights the library holds: those of the last step, or of the one before where
    training ended worse.
    `usage` says how evenly its experts, leaves or slots are used; empty where it has none.
    """

    role: Role
    name: str
    layers: int
    first_weights: float
    least_squares: float | None
    trained: float | None
    kept: str
    tokens: int
    seconds: float
    usage: str


@dataclass(frozen=True)
class Curve:
    """Training losses of one option at one layer, as (tokens, loss)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one kind."""

    title: str
    curves: tuple[Curve, ...]


def distillations(options: Sequence[KnownOption]) -> tuple[models.DistillationRow, ...]:
    """Each distillation once: the option of a pair may point at the same row as the option of its part."""
    found = {known.distillation.key: known.distillation for known in options if known.distillation}
    return tuple(found.values())


def lines(rows: Iterable[models.DistillationRow]) -> tuple[DistilledLine, ...]:
    """A line per option, by role and then from the best to the worst first weights."""
    grouped: dict[tuple[Role, str], list[models.DistillationRow]] = {}
    for row in rows:
        choice = Choice.parse(row.choice)
        grouped.setdefault((choice.role, str(choice.what)), []).append(row)
    found = [
        DistilledLine(
            role,
            name,
            len(group),
            fmean(row.loss_first_weights for row in group),
            _mean([row.loss_least_squares for row in group]),
            _mean([row.loss_trained for row in group]),
            _kept(group),
            max(row.tokens for row in group),
            sum(row.seconds for row in group),
            _usage(group),
        )
        for (role, name), group in grouped.items()
    ]
    return tuple(sorted(found, key=lambda line: (line.role, line.first_weights, line.name)))


def panels(rows: Iterable[models.DistillationRow]) -> tuple[Panel, ...]:
    """A panel per kind that was trained, attention first."""
    found: dict[tuple[Role, str], list[Curve]] = {}
    for row in rows:
        choice = Choice.parse(row.choice)
        if len(row.curve) > 1:
            points = tuple((tokens, loss) for tokens, loss in row.curve)
            curves = found.setdefault((choice.role, choice.subblocks[0][1].kind), [])
            curves.append(Curve(str(choice.what), points))
    return tuple(Panel(f"{role}: {kind}", tuple(curves)) for (role, kind), curves in sorted(found.items()))


def healing_panel(curve: Sequence[Sequence[float]]) -> Panel:
    """The losses of a child while it was healed."""
    return Panel("child", (Curve("healing", tuple((tokens, loss) for tokens, loss in curve)),))


def _kept(group: Sequence[models.DistillationRow]) -> str:
    """The step whose weights were kept, with counts if the layers differ."""
    counted = Counter(map(_kept_of, group))
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{step} {count} of {len(group)}" for step, count in counted.most_common())


def _kept_of(row: models.DistillationRow) -> str:
    """The decision of `blocklib.distil.distil`: weights from before training are kept if training ends with a larger
    loss."""
    began = row.loss_first_weights if row.loss_least_squares is None else row.loss_least_squares
    if row.loss_trained is not None and row.loss_trained <= began:
        return "trained"
    return "first weights" if row.loss_least_squares is None else "least squares"


@dataclass(frozen=True)
class _Routing:
    """`blocklib.distil.Usage` as a row keeps it. The original is not used here, because its file loads PyTorch."""

    parts: int
    unused: int
    least: float
    most: float
    entropy: float


def _usage(rows: Sequence[models.DistillationRow]) -> str:
    """The usage of the worst layer, in words; empty if no row has any."""
    usages = [_Routing(**row.usage) for row in rows if row.usage]
    if not usages:
        return ""
    unused, parts = max(usage.unused for usage in usages), usages[0].parts
    evenness = min(usage.entropy for usage in usages)
    return f"{parts - unused} of {parts} used, evenness {evenness:.2f}"


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return fmean(known) if known else None
