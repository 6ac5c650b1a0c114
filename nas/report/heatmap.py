"""Every option's score by layer, and which of them the chosen architecture holds.

Knows rows, columns and how hot a cell is on a log scale; the template gives it a colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from blocklib.block import TABLE_ROLES, Architecture, Choice, Role
from db.measured import KnownOption

_ROLES: tuple[Role, ...] = ("attention", "ffn", "block", *TABLE_ROLES)


@dataclass(frozen=True)
class ScoreCell:
    """One option at one layer. `heat` is 0 at the least positive score and 1 at the largest."""

    text: str
    exact: str
    heat: float
    is_chosen: bool
    is_parents_own: bool


@dataclass(frozen=True)
class Column:
    role: Role
    name: str


@dataclass(frozen=True)
class Heatmap:
    """Cells by layer and column, None if a layer has no such option. `least` and `most` are the ends of the scale."""

    columns: tuple[Column, ...]
    layers: tuple[tuple[int, tuple[ScoreCell | None, ...]], ...]
    least: str
    most: str

    @property
    def roles(self) -> tuple[tuple[Role, int], ...]:
        """Each role that has columns, with their number."""
        counts = [(role, sum(column.role == role for column in self.columns)) for role in _ROLES]
        return tuple((role, count) for role, count in counts if count)


def heatmap(options: Sequence[KnownOption], metric: str, architecture: Architecture | None) -> Heatmap | None:
    """The scores known so far in `metric`, kl or lm_loss; None if there are none. Within a role the columns are sorted
    by their median over the layers, from the parent's own to the largest.
    """
    scores = {Choice.parse(known.option.choice): _score(known, metric) for known in options}
    own = {Choice.parse(known.option.choice) for known in options if known.option.score_key is None}
    known_scores = {choice: score for choice, score in scores.items() if score is not None}
    if not known_scores.keys() - own:
        return None
    positive = [score for score in known_scores.values() if score > 0]
    least, most = (min(positive), max(positive)) if positive else (1.0, 1.0)
    held = set(architecture.choices()) if architecture else set()

    def cell(choice: Choice) -> ScoreCell | None:
        score = known_scores.get(choice)
        if score is None:
            return None
        is_own = choice in own
        exact = f"{choice}: " + ("the parent's own, 0 by definition" if is_own else repr(score))
        text = "0" if is_own else f"{score:.2g}"
        return ScoreCell(text, exact, _heat(score, least, most), _is_held(choice, held), is_own)

    columns = _columns(known_scores, own)
    by_place = {(choice.layer, Column(choice.role, str(choice.what))): choice for choice in known_scores}
    layers = sorted({choice.layer for choice in known_scores})
    found = tuple(
        (layer, tuple(cell(by_place[layer, column]) if (layer, column) in by_place else None for column in columns))
        for layer in layers
    )
    return Heatmap(columns, found, f"{least:.2g}", f"{most:.2g}")


def _score(known: KnownOption, metric: str) -> float | None:
    if known.option.score_key is None:
        return 0.0
    return None if known.score is None else float(getattr(known.score, metric))


def _columns(scores: dict[Choice, float], own: set[Choice]) -> tuple[Column, ...]:
    found: dict[Column, list[tuple[bool, float]]] = {}
    for choice, score in scores.items():
        found.setdefault(Column(choice.role, str(choice.what)), []).append((choice not in own, score))

    def order(column: Column) -> tuple[int, bool, float, str]:
        cells = found[column]
        replaces = all(is_other for is_other, _ in cells)
        return _ROLES.index(column.role), replaces, median(score for _, score in cells), column.name

    return tuple(sorted(found, key=order))


def _heat(score: float, least: float, most: float) -> float:
    if score <= least:
        return 0.0
    return math.log(score / least) / math.log(most / least)


def _is_held(choice: Choice, held: set[Choice]) -> bool:
    """Whether all its subblocks are in the architecture. The architecture does not say which options were scored as a
    pair."""
    return choice in held or all(part in held for part in choice.parts)
