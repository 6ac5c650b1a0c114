"""The options of the space, with score and cost over their layers, and the reason why each was chosen or not. Sparse
options are beside their control.

The control of a sparse FFN is the dense one of the same active width (`blocklib.kinds.control`), found here as the
dense option whose active parameters are nearest. Knows rows only.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

from blocklib.block import Architecture, Choice, Role, Subblock
from cost_models.cost import ZERO, Cost
from cost_models.metrics import Metric
from cost_models.scenario import Scenario
from db.measured import KnownOption
from nas.solve.solve import cost_of


@dataclass(frozen=True)
class Offer:
    """One option: the mean over the layers that had it. `cost` is a share of the cost of the parent's own parts there,
    or, where precisions are chosen, of the dearest option's; `cost_error` its standard error as such a share, and
    `contention` the worst CPU contention while it was timed; None if unknown.

    `bytes_per_token` are the weights a decode step reads over its batch. `control` names the dense FFN that a sparse
    one is compared with. `why` says in words what is against the option; empty if nothing is.
    """

    role: Role
    name: str
    layers: int
    chosen: int
    score: float
    cost: float
    cost_error: float | None
    contention: float | None
    parameters: float
    active_parameters: float
    bytes_per_token: float
    control: str
    why: str


@dataclass(frozen=True)
class _Known:
    choice: Choice
    is_own: bool
    score: float
    cost: float
    row: Cost


def offers(
    options: Sequence[KnownOption], metric: str, cost: Metric, scenario: Scenario, child: Architecture | None
) -> tuple[Offer, ...]:
    """A line per option, by role and then from the least to the greatest score; empty until all is measured.

    `metric` is kl or lm_loss, `cost` a linear metric.
    """
    known = [one for option in options if (one := _known(option, metric, cost, scenario)) is not None]
    own: dict[tuple[Role, int], float] = {}
    is_stored = not any(one.is_own for one in known)
    for one in known:
        if one.is_own or is_stored:
            place = one.choice.role, one.choice.layer
            own[place] = max(one.cost, own.get(place, 0.0))
    held = set(child.choices()) if child else set()
    grouped: dict[tuple[Role, str], list[_Known]] = {}
    for one in known:
        grouped.setdefault((one.choice.role, str(one.choice.what)), []).append(one)
    plain = [
        Offer(
            role,
            name,
            len(group),
            sum(one.choice in held or set(one.choice.parts) <= held for one in group),
            fmean(one.score for one in group),
            sum(one.cost for one in group) / (sum(_own_cost(one.choice, own) for one in group) or 1.0),
            _error(group, cost, scenario, sum(_own_cost(one.choice, own) for one in group)),
            sum((one.row for one in group), ZERO).contention,
            fmean(one.row.parameters for one in group),
            fmean(one.row.active_parameters for one in group),
            fmean(one.row.decode_bytes for one in group) / scenario.batch,
            "",
            "",
        )
        for (role, name), group in grouped.items()
    ]
    dense = {name for (role, name), group in grouped.items() if role == "ffn" and _is_dense(group[0].choice)}
    judged = [_judged(offer, plain, dense) for offer in plain]
    return tuple(sorted(judged, key=lambda offer: (offer.role, offer.score, offer.name)))


def _known(option: KnownOption, metric: str, cost: Metric, scenario: Scenario) -> _Known | None:
    is_own = option.option.score_key is None
    if option.costs is None or (option.score is None and not is_own):
        return None
    row = cost_of(*option.costs)
    value = cost.of(row, scenario, None)
    if value is None:
        return None
    score = 0.0 if option.score is None else float(getattr(option.score, metric))
    return _Known(Choice.parse(option.option.choice), is_own, score, value, row)


def _error(group: Sequence[_Known], cost: Metric, scenario: Scenario, own: float) -> float | None:
    """The error of the cost; 0 if the cost is computed. It is the error of one geometry, and so the same in every
    layer."""
    error = cost.error(sum((one.row for one in group), ZERO), scenario)
    return None if error is None else error / (own or 1.0)


def _own_cost(choice: Choice, own: dict[tuple[Role, int], float]) -> float:
    """The cost of the parent itself at the slots of `choice`, including the attentions inside a fused run."""
    if choice.is_table:
        return own[choice.role, choice.layer]
    slots = range(choice.first_slot, choice.first_slot + choice.span)
    return sum(own.get(("ffn" if slot % 2 else "attention", slot // 2), 0.0) for slot in slots)


def _is_dense(choice: Choice) -> bool:
    return isinstance(choice.what, Subblock) and choice.what.kind == "ffn"


def _judged(offer: Offer, all_offers: Sequence[Offer], dense_names: Collection[str]) -> Offer:
    """`dense_names` are the names of the FFNs that a sparse one is compared with."""
    rivals = [other for other in all_offers if other.role == offer.role and other.name != offer.name]
    dense = [other for other in rivals if other.name in dense_names]
    why, control = "", ""
    if offer.role == "ffn" and offer.active_parameters < offer.parameters and dense:
        beside = min(dense, key=lambda other: abs(other.active_parameters - offer.active_parameters))
        control = beside.name
        if offer.score >= beside.score:
            why = f"no closer to the parent than its control {control}; not recommended"
        elif offer.cost > beside.cost:
            why = f"closer to the parent than its control {control}, but costs more here"
    better = [other for other in rivals if other.score <= offer.score and other.cost <= offer.cost]
    better = [other for other in better if (other.score, other.cost) != (offer.score, offer.cost)]
    if not why and better:
        best = min(better, key=lambda other: (other.score, other.cost))
        why = f"{best.name} is closer to the parent and costs no more"
    if not why and not offer.chosen:
        why = "on the front of score against cost, but not near this budget"
    return Offer(**{**vars(offer), "control": control, "why": why})
