"""A trial layer by layer: what stands where, what it scores and what it costs, from the store alone."""

from dataclasses import dataclass

from blocklib.block import CACHE, Architecture, Choice
from db import models
from db.store import Store
from nas.job.stored import scenario_in
from nas.solve.solve import measured


@dataclass(frozen=True)
class LayerLine:
    """One option of the architecture; `place` is its layer and role, or its range of layers. Standard errors, and the
    CPU contention that its times were taken under, are None where nobody noted them."""

    place: str
    parent: str
    child: str
    score: float
    prefill_s: float
    decode_s: float
    prefill_error_s: float | None
    decode_error_s: float | None
    contention: float | None
    memory_bytes: int
    """Its weights and its share of the cache."""
    parameters: int


def layers_of(store: Store, search: models.SearchRow, trial: models.TrialRow) -> tuple[LayerLine, ...]:
    """The options it is made of, in slot order."""
    known = measured(store, search, trial.metric).under(Architecture.parse(trial.architecture))
    options = {known.choice(option): option for option in known.options}
    parent = {choice.first_slot: choice for choice in Architecture.parse(search.parent_architecture).choices()}
    own_cache = f"{CACHE}@{scenario_in(search).cache_type}"
    lines = []
    for choice in map(Choice.parse, trial.choices):
        option, cost = options[choice], known.costs[choice]
        last = choice.end_layer - 1
        layers = f"{choice.layer}" if last == choice.layer else f"{choice.layer}-{last}"
        slots = range(choice.first_slot, choice.first_slot + choice.span)
        replaced = [str(parent[slot].what) for slot in slots if slot in parent] or [str(choice.what.unrounded)]
        is_cache = choice.role == "cache"
        lines.append(
            LayerLine(
                place=choice.role if choice.is_table or is_cache else f"{layers} {choice.role}",
                parent=own_cache if is_cache else " ".join(replaced),
                child=str(choice.what),
                score=option.score,
                prefill_s=cost.prefill_s,
                decode_s=cost.decode_s,
                prefill_error_s=cost.prefill_error_s,
                decode_error_s=cost.decode_error_s,
                contention=cost.contention,
                memory_bytes=cost.weight_bytes + cost.cache_bytes,
                parameters=cost.parameters,
            )
        )
    return tuple(lines)
