"""The report's plots: values in, matplotlib figures out, figures in, SVG or PNG out.

Knows axes and colours, not what a search is. It does not use pyplot: a figure is a value, and the settings apply only
while one is made or written. The same values give the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cost_models.metrics import METRICS
from nas.job.units import format_quantity
from nas.report.agreement import Pair
from nas.report.distillation import Panel

_INK = "#1b2733"
"""The colour of text and axes. In a page it becomes the page's own text colour."""
_FRONT, _CHOSEN, _OTHER = "#3b7dd8", "#d9622b", "#8a94a0"
_SERIES = ("#3b7dd8", "#d9622b", "#2f9e77", "#8e5bc4", "#c79a1b", "#c4487d", "#5f7d8c", "#7a9a2e")

# Any: the typed keys of matplotlib differ between versions.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "puzzle-nas",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _OTHER,
    "grid.alpha": 0.22,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_NO_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Mark:
    """A trial beside the front. `measured` is its measured share of the measured parent, times the parent's predicted
    cost, so that both stand on one axis; None where it was not measured."""

    trial: int
    cost: float
    score: float
    measured: float | None
    is_chosen: bool


@matplotlib.rc_context(_STYLE)
def front_figure(
    cost: str,
    front: Sequence[tuple[float, float]],
    parent_cost: float,
    ceiling: float | None = None,
    marks: Sequence[Mark] = (),
    title: str = "",
) -> Figure:
    """Score against a cost, the cheapest first; for throughput that is the largest. `front` is (cost, score), costs in
    the metric's base unit. The line is a step, because between two points the cheaper one is still the best. A
    measurement far outside of the front is drawn at the edge with its share of the parent's value, so that the front
    keeps its size.
    """
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    at, scores = [point[0] for point in front], [point[1] for point in front]
    axes.step(at, scores, where="post", color=_FRONT, linewidth=1.2, alpha=0.6)
    axes.plot(at, scores, "o", color=_FRONT, markersize=4, label="best for its cost")
    axes.axvline(parent_cost, color=_INK, linewidth=0.8, linestyle=":", label="parent")
    if ceiling is not None:
        axes.axvline(ceiling, color=_CHOSEN, linewidth=0.9, linestyle="--", label="budget")
    known = [*at, parent_cost, *([] if ceiling is None else [ceiling]), *(mark.cost for mark in marks)]
    margin = 0.06 * (max(known) - min(known)) or 0.06 * parent_cost
    left, right = min(known) - margin, max(known) + margin
    _draw_marks(axes, marks, left, right, parent_cost)
    axes.set_xlim(left, right)
    if title:
        axes.set_title(title, loc="left", fontsize=9)
    is_floor = METRICS[cost].at_least
    _label(axes, cost, parent_cost)
    _widen(axes, [*scores, *(mark.score for mark in marks)])
    # The corner that the front, which falls with the cost, leaves free.
    axes.legend(loc="upper left" if is_floor else "upper right")
    return figure


def _label(axes: Axes, cost: str, parent_cost: float) -> None:
    """Score against a cost of the whole model, and above as a share of the parent's."""
    axes.set_xlabel(f"{cost} of the whole model{', more is better' if METRICS[cost].at_least else ''}")
    axes.set_ylabel("score: predicted distance from the parent")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_quantity(cost, value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    to_percent, from_percent = (
        (lambda x: np.multiply(x, 100 / parent_cost)),
        (lambda x: np.multiply(x, parent_cost / 100)),
    )
    shares = axes.secondary_xaxis("top", functions=(to_percent, from_percent))
    shares.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    shares.set_xlabel("share of the parent's")


@matplotlib.rc_context(_STYLE)
def precisions_figure(
    cost: str,
    fronts: Mapping[str, Sequence[tuple[float, float]]],
    uniform: Mapping[str, tuple[float, float]],
    parent_cost: float,
    pays_from: float | None = None,
) -> Figure:
    """Fronts by their names, each (cost, score) as in `front_figure`, and the parent in each precision throughout as
    marks. `pays_from` is drawn as a line."""
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, front), color, marker in zip(fronts.items(), _SERIES, "osD^", strict=False):
        if front:
            at, scores = zip(*front, strict=True)
            axes.step(at, scores, where="post", color=color, linewidth=1.3, marker=marker, markersize=3.5, label=name)
    places = list(uniform.values())
    axes.plot(*zip(*places, strict=True), "X", color=_INK, markersize=7, linestyle="", label="parent in one precision")
    for name, place in uniform.items():
        axes.annotate(name, place, xytext=(6, 5), textcoords="offset points", fontsize=8)
    if pays_from is not None:
        axes.axvline(pays_from, color=_OTHER, linewidth=0.9, linestyle="--", label="pruning pays from here")
    _label(axes, cost, parent_cost)
    _widen(axes, [score for front in (*fronts.values(), places) for _, score in front])
    axes.legend(loc="upper left" if METRICS[cost].at_least else "upper right", fontsize=8)
    return figure


def _draw_marks(axes: Axes, marks: Sequence[Mark], left: float, right: float, parent_cost: float) -> None:
    """Draw trials between `left` and `right`; only the chosen one gets its number."""
    for is_chosen, color, size, label in ((False, _OTHER, 6, "trial"), (True, _CHOSEN, 9, "chosen trial")):
        some = [mark for mark in marks if mark.is_chosen == is_chosen]
        if not some:
            continue
        axes.plot([mark.cost for mark in some], [mark.score for mark in some], "D", color=color, markersize=size - 2,
                  label=f"{label}, predicted", zorder=3 + is_chosen)  # fmt: skip
        measured = [(mark, mark.measured) for mark in some if mark.measured is not None]
        for mark, found in measured:
            axes.plot([mark.cost, found], [mark.score] * 2, color=color, linewidth=0.9, zorder=2)
        inside = [(found, mark.score) for mark, found in measured if left <= found <= right]
        if inside:
            axes.plot(*zip(*inside, strict=True), "o", markersize=size - 1, markerfacecolor="none",
                      markeredgecolor=color, label=f"{label}, measured", zorder=3)  # fmt: skip
        for mark, found in measured:
            if not left <= found <= right:
                edge, offset, side = (right, -4, "right") if found > right else (left, 4, "left")
                axes.annotate(
                    f"measured {found / parent_cost:.0%}", (edge, mark.score), xytext=(offset, -11), ha=side,
                    textcoords="offset points", color=color, fontsize=8,
                )  # fmt: skip
        for mark in some if is_chosen else ():
            axes.annotate(f"trial {mark.trial}", (mark.cost, mark.score), xytext=(5, 5), textcoords="offset points")


def _widen(axes: Axes, scores: Sequence[float]) -> None:
    """Scores grow by orders of magnitude towards the cheap end, and the parent's own score is 0, which a log scale
    cannot show."""
    most = max((abs(score) for score in scores), default=0.0)
    least = min((abs(score) for score in scores if score), default=0.0)
    if least and most / least > 100:
        linear_to = 10.0 ** ceil(log10(max(least, most / 1000)))
        axes.set_yscale("symlog", linthresh=linear_to, linscale=0.7)
    if min(scores, default=0.0) >= 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@matplotlib.rc_context(_STYLE)
def strategies_figure(rows: Sequence[tuple[str, float, float | None, float | None]]) -> Figure:
    """One bar per strategy, the first on top: (name, real KL, predicted KL, healed KL). None means that there is no
    value."""
    figure = Figure(figsize=(7.6, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([name for name, *_ in rows], [real for _, real, _, _ in rows], color=_FRONT, alpha=0.75, label="real")
    for place, label, marker, color in ((2, "predicted", "|", _INK), (3, "healed", "D", _CHOSEN)):
        some = [(row[place], row[0]) for row in rows if row[place] is not None]
        if some:
            axes.plot(*zip(*some, strict=True), marker, color=color, markersize=9 if marker == "|" else 5, label=label)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("KL from the parent")
    axes.legend(loc="upper right")
    return figure


@matplotlib.rc_context(_STYLE)
def agreement_figure(latency: Sequence[Pair], score: Sequence[Pair]) -> Figure:
    """Measured against predicted, for latency and for the score before healing; on the dotted line they agree."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_pairs(left, latency, "latency, of the parent's")
    _draw_pairs(right, score, "score before healing")
    shares = FuncFormatter(lambda value, _: f"{value:.0%}")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(shares)
        axis.set_major_locator(MaxNLocator(4))
    return figure


def _draw_pairs(axes: Axes, pairs: Sequence[Pair], what: str) -> None:
    axes.set_title(what, loc="left", fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("measured")
    if not pairs:
        return
    most = 1.08 * max(max(pair.predicted, pair.measured) for pair in pairs)
    least = min(0.0, *(min(pair.predicted, pair.measured) for pair in pairs))
    axes.plot([least, most], [least, most], ":", color=_INK, linewidth=0.8)
    axes.plot([pair.predicted for pair in pairs], [pair.measured for pair in pairs], "o", color=_FRONT, markersize=5)
    for pair in pairs:
        axes.annotate(f"{pair.trial}", (pair.predicted, pair.measured), xytext=(5, -3), textcoords="offset points")


@matplotlib.rc_context(_STYLE)
def additivity_figure(pairs: Sequence[Pair]) -> Figure:
    """Real KL against the sum of scores, one dot per architecture; on the dotted line they agree."""
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    sums, reals = [pair.predicted for pair in pairs], [pair.measured for pair in pairs]
    least, most = min(*sums, *reals, 0.0), 1.05 * max(*sums, *reals)
    axes.plot([least, most], [least, most], ":", color=_INK, linewidth=0.8)
    axes.plot(sums, reals, "o", color=_FRONT, markersize=4, alpha=0.55)
    axes.set_xlabel("sum of scores")
    axes.set_ylabel("real KL, not trained")
    return figure


@matplotlib.rc_context(_STYLE)
def curves_figure(panels: Sequence[Panel]) -> Figure:
    """One panel per kind, one line per layer, one colour per option."""
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(3.1 * columns if columns > 1 else 4.4, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        names = sorted({curve.name for curve in panel.curves}, key=lambda name: (len(name), name))
        colors = {name: _SERIES[index % len(_SERIES)] for index, name in enumerate(names)}
        for curve in panel.curves:
            axes.plot(*zip(*curve.points, strict=True), color=colors[curve.name], linewidth=0.9, alpha=0.55)
        for name in names:
            axes.plot([], [], color=colors[name], label=name)
        axes.set_title(panel.title, loc="left", fontsize=9)
        if any(loss > 0 for curve in panel.curves for _, loss in curve.points):  # no log scale shows only zeros
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_quantity("parameters", value)))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.legend(fontsize=7)
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    return figure


@matplotlib.rc_context(_STYLE)
def file_bytes(figure: Figure, format: str) -> bytes:
    """A figure as a file of its own, "svg" or "png", on white."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format=format, dpi=160, facecolor="white", metadata=_NO_METADATA if format == "svg" else None
    )
    return buffer.getvalue()


@matplotlib.rc_context(_STYLE)
def inlined(figure: Figure, description: str) -> Markup:
    """A figure as an <svg> element with a transparent background, the page's text colour, and a description for screen
    readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # HTML needs no namespaces. The ids of groups would occur twice in a page of several figures; nothing refers to
    # them.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[^"]*_\d+"', "", svg)
    svg = svg.replace(_INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    return Markup(svg)
