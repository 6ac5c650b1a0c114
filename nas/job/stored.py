"""The JSON columns of a search's row as typed values: what its job asked, its scenario, what its parent costs.

No other file reads their keys. A row of an earlier version lacks the keys that were added since; they have their
defaults. This file looks at no other file, since what a job names may be gone, and loads no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from blocklib.block import Architecture
from cost_models.cost import Cost
from cost_models.scenario import Scenario
from db import models
from nas.job import sections
from nas.job.compute import Compute
from nas.job.sections import Measure, Section, Solver
from nas.job.training import Distill
from nas.job.units import Limit, parse_limit

Kind = TypeVar("Kind", bound=Section)


@dataclass(frozen=True)
class StoredRequest:
    """The request that a search was run with. Each section is read when it is asked for, so that one which this version
    cannot read stands in the way of nothing else."""

    _values: Mapping[str, Any]

    @property
    def budget(self) -> tuple[Limit, ...]:
        """Raises BudgetError or QuantityError for a limit that an older version wrote otherwise."""
        return tuple(parse_limit(metric, text) for metric, text in self._values["budget"].items())

    @property
    def metric(self) -> str:
        """The score to minimise, kl or lm_loss."""
        return self._section("score", sections.Score).metric

    @cached_property
    def solver(self) -> Solver:
        return self._section("solver", Solver)

    @cached_property
    def measure(self) -> Measure:
        return self._section("measure", Measure)

    @property
    def is_timed_here(self) -> bool:
        """Whether times are taken; else the machine is simulated, or its costs were measured elsewhere."""
        return self._section("scenario", sections.ScenarioSection).flash is None and self.measure.table is None

    @property
    def is_plain(self) -> bool:
        """Whether the layers of its children are all of one size."""
        return bool(self._values.get("space", {}).get("plain"))

    @property
    def precisions(self) -> Any:
        """The precisions that its subblocks may be stored in: a list of names, "all", or nothing."""
        return self._values.get("space", {}).get("precision")

    @property
    def predicts_scores(self) -> bool:
        """Whether scores of its subblocks in a precision are predicted, all or those that no answer stands on."""
        return bool(self.precisions) and self._section("score", sections.Score).rounded != "measured"

    @property
    def products(self) -> str:
        """The type in which its passes multiply."""
        return self._section("compute", Compute).precision

    @property
    def learning_rate(self) -> float | None:
        """That of distillation; None in a row that says none."""
        return self._section("distill", Distill).learning_rate

    @property
    def heals(self) -> bool:
        """Whether children are healed."""
        return self._values.get("heal", True) is not None

    @property
    def ray_address(self) -> str | None:
        return self._section("ray", sections.Ray).address

    @property
    def allows_remote_code(self) -> bool:
        return bool(self._values.get("allow_remote_code"))

    @property
    def home(self) -> Path:
        """As the job named it; `nas/files/home.py` says where it is now."""
        return Path(self._values["home"])

    def _section(self, key: str, kind: type[Kind]) -> Kind:
        """The keys of a section that this version knows."""
        stored = self._values.get(key, {})
        return kind.model_validate({name: value for name, value in stored.items() if name in kind.model_fields})


@dataclass(frozen=True)
class ParentCosts:
    """`fixed` is the cost of the embedding, the final norm and the head, `whole` that of all of the parent. None until
    all is measured; `fixed` alone is None while a replaced cost is not summed again."""

    fixed: Cost | None
    whole: Cost | None

    def plain(self) -> dict[str, Any]:
        """As a row keeps it."""
        return {name: vars(cost) for name, cost in vars(self).items() if cost is not None}


@dataclass(frozen=True)
class StoredRemoval:
    """The parent without whole layers: the influence of each layer, and the losses of SLEB's rounds by layer."""

    influence: tuple[float, ...] | None = None
    rounds: tuple[Mapping[int, float], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As a row keeps it: JSON has no keys but text."""
        influence = {} if self.influence is None else {"influence": list(self.influence)}
        rounds = [{str(layer): loss for layer, loss in losses.items()} for losses in self.rounds]
        return influence | ({"rounds": rounds} if rounds else {})


def request_of(search: models.SearchRow) -> StoredRequest:
    return StoredRequest(search.request)


def scenario_in(search: models.SearchRow) -> Scenario:
    """The scenario that the search's times were taken under."""
    return Scenario(**search.scenario)


def kv_cache_of(search: models.SearchRow, trial: models.TrialRow) -> str | None:
    """The type of keys and values that llama.cpp serves a trial of the search with; None: its usual one."""
    return scenario_in(search).keeping(Architecture.parse(trial.architecture).cache).kv_cache


def parent_costs_of(search: models.SearchRow) -> ParentCosts:
    fixed, whole = (search.parent_costs.get(part) for part in ("fixed", "whole"))
    return ParentCosts(None if fixed is None else Cost(**fixed), None if whole is None else Cost(**whole))


def parent_totals(search: models.SearchRow) -> dict[str, float]:
    """Every metric that is known of the whole parent, by column; empty until it is measured."""
    whole = parent_costs_of(search).whole
    return {} if whole is None else whole.totals(scenario_in(search), whole.parameters)


def removal_of(search: models.SearchRow) -> StoredRemoval:
    stored = search.removal or {}
    influence = stored.get("influence")
    rounds = [{int(layer): loss for layer, loss in losses.items()} for losses in stored.get("rounds", ())]
    return StoredRemoval(None if influence is None else tuple(influence), tuple(rounds))
