"""A search as a user holds it: ask it for other budgets, build and export what it answers.

Each method of a `Search` opens the database, works, and closes it again; those that only read and solve load no
PyTorch. Budgets are written as on the command line, "latency=50%,memory=1.5GiB", or as a mapping, {"latency": "50%"}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from db import models
from db.errors import NotFoundError
from db.store import Store
from nas.answers import Front, Trial, UniformPrecisions
from nas.errors import ScoreMetricError, UsageError
from nas.files.database import opened
from nas.job import units
from nas.job.stored import request_of
from nas.job.units import Limit
from nas.solve import across
from nas.solve.counting import counted
from nas.solve.effort import USUAL, Effort, shown
from nas.solve.explain import explain
from nas.solve.front import front_of
from nas.solve.plain_price import priced, with_real_kls
from nas.solve.pool import Alternatives, Wanted, alternatives, check_count
from nas.solve.restricted import Only, restricted
from nas.solve.solve import Measured, measured, proposed
from nas.solve.summary import summary
from nas.terminal.console import Progress, console_of
from nas.terminal.progress import bar, loading
from nas.trial_query import trials
from nas.view.evaluation import Evaluation
from nas.view.trial import LayerLine, layers_of

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

    from nas.compare.strategies import StrategyResult
    from nas.export.exported import Exported
    from nas.pipeline import Outcome
    from nas.solve.whole_times import CostCheck
    from nas.stages.cost_table import CostTable

Budget = str | Mapping[str, str] | Sequence[Limit]


@dataclass(frozen=True)
class Search:
    """A search in a database. `row` holds every column that the database has of it."""

    row: models.SearchRow
    db: str = field(repr=False)
    progress: Progress = field(default=True, repr=False)
    outcome: "Outcome | None" = field(default=None, repr=False)
    """The trial, the child and the report of `nas.run`. None for a search that was loaded."""

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def trial(self) -> Trial | None:
        """The trial that was built last."""
        with opened(self.db, "read", self.progress) as store:
            built = store.trials(self.id, where="kl is not None")
        return self._trial(built[-1]) if built else None

    def trials(self, where: str | None = None, sort: str | None = None) -> "pandas.DataFrame | list[dict[str, Any]]":
        """Its trials that match a condition: see `nas.trials`."""
        return trials(self.id, where=where, sort=sort, db=self.db)

    def __getitem__(self, trial: int) -> Trial:
        """The trial of that number. Raises `db.errors.NotFoundError` where there is none, or it is another search's."""
        with opened(self.db, "read", self.progress) as store:
            row = with_real_kls(store, store.trial(trial))
        return self._own(self._trial(row))

    def solve(
        self,
        budget: Budget,
        *,
        metric: str | None = None,
        refine: int | None = None,
        plain: bool = False,
        effort: Effort = USUAL,
    ) -> Trial:
        """The best architecture for a budget, predicted in seconds: nothing is measured or trained.

        `metric`: the score to minimise, "kl" or "lm_loss"; None: the search's own. `refine`: assemble so many
        candidates, measure the real KL of each, and take the best; that loads PyTorch and takes longer. `plain`: the
        best whose layers are all of one size, which the export "plain" carries; a search whose space is plain has no
        other answers. Raises
        `nas.errors.BudgetNotMetError` where no architecture meets the budget, saying how near each limit can be met.
        """
        if refine is None:
            return solve_across([self], budget, metric=metric, plain=plain, effort=effort)
        with loading(self._console, f"refine {self.name}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.stages.refine import solve_refined
        limits = limits_of(budget)
        with opened(self.db, "write", self.progress) as store:
            known = _known(store, self, metric, plain)
            trial = solve_refined(store, known, limits, refine, self._console, effort)[1]
            return self._trial(priced(store, known, limits, trial, effort))

    def front(
        self,
        cost: str = "latency",
        budget: Budget = "",
        points: int = 20,
        effort: Effort = USUAL,
        only: Only | None = None,
    ) -> Front:
        """Find the best score at every cost, from the cheapest architecture to the parent.

        `cost`: a metric of a budget. `budget`: other limits that hold along the front. `only`, in a search that chose
        precisions: "precisions" keeps the parent's shapes, "shapes" keeps one precision (`nas/solve/restricted.py`).
        Raises `nas.errors.BudgetNotMetError`, and `nas.errors.UsageError` for `only` of another search.
        """
        limits = limits_of(budget)
        with opened(self.db, "read", self.progress) as store, bar(self._console, f"front of {points} points"):
            known = restricted(measured(store, store.find_search(self.id)), only)
            found = front_of(known, cost, limits, points, effort)
            return Front(cost, found, known, limits, tuple(store.trials(self.id)))

    def pool(
        self, budget: Budget = "", count: int = 5, apart: int = 1, total_s: float = 600.0, effort: Effort = USUAL
    ) -> tuple[Trial, ...]:
        """The best architectures for a budget, any two of which differ in at least `apart` subblocks, best first.

        `budget` empty: the search's own. `total_s`: seconds for all of them together. Raises
        `nas.errors.BudgetNotMetError`. After Ctrl-C those found stay trials, and KeyboardInterrupt is raised.
        """
        answer = self.alternatives(budget, Wanted(count, apart, total_s), effort)
        if answer.ended == "interrupted":
            raise KeyboardInterrupt
        return tuple(self._trial(one.trial) for one in answer.found)

    def alternatives(self, budget: Budget, wanted: Wanted, effort: Effort = USUAL) -> Alternatives:
        """The architectures of `pool`, how far each is from the first, and why there are no more.

        Raises as `pool` does; Ctrl-C raises KeyboardInterrupt only if nothing is found yet.
        """
        check_count(wanted.count)
        with (
            opened(self.db, "read", self.progress) as store,
            counted(self._console, wanted.count, wanted.total_s) as told,
        ):
            known = measured(store, store.find_search(self.id))
            limits = limits_of(budget) or known.budget
            return alternatives(store, known, limits, wanted, effort.with_progress(told.solving), told.found)

    def compare(
        self,
        budget: Budget = "",
        *,
        only: Sequence[str] = (),
        evaluations: int = 100,
        seeds: int = 3,
        heal: bool = False,
        time: bool = False,
    ) -> "list[StrategyResult]":
        """The solver's answer beside other strategies', the real KL of each measured; the nearest to the parent first.

        `only`: the names of some strategies; else all are asked. `evaluations`: whole models that refining and
        evolution may run each; `seeds`: random architectures; `heal` and `time`: heal, or time, every answer.
        """
        with loading(self._console, f"compare {self.name}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.compare.strategies import Asked, compare, strategies
        asked = Asked(limits_of(budget), evaluations, seeds, heal, time, strategies(only))
        with opened(self.db, "write", self.progress) as store:
            return compare(store, store.find_search(self.id), asked, self._console)

    def check_costs(self, children: int = 12, *, seed: int = 0) -> "CostCheck":
        """How far sums of costs are from the times of whole architectures: `children` random ones are timed beside the
        parent in the search's engine, each twice, where that is not done yet. 0: those that were timed before.

        Raises `nas.errors.UsageError` where none was timed, `nas.errors.StaleSearchError` on another machine than the
        search's.
        """
        with loading(self._console, f"check the costs of {self.name}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.solve.whole_times import cost_check
            from nas.stages.check_costs import time_wholes
        with opened(self.db, "write", self.progress) as store:
            known = measured(store, store.find_search(self.id))
            if children:
                time_wholes(store, known, children, seed, self._console)
            found = cost_check(known, store.whole_times(self.id))
        if found is None:
            raise UsageError(f"no whole architecture of {self.name} was timed; give --children 12")
        return found

    def precisions(self, *, time: bool = True) -> "UniformPrecisions":
        """The latest built child of a search that chose precisions, beside its parent stored in each of them
        throughout, as llama.cpp's own quantiser writes it. `time`: each is timed in turns with the child, in the
        search's engine.

        Raises `nas.errors.UsageError` where the search chose no precisions or has no child.
        """
        with loading(self._console, f"precisions of {self.name}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.stages.uniform import beside_uniform
        with opened(self.db, "read", self.progress) as store:
            trial, found = beside_uniform(store, store.find_search(self.id), self._console, time)
            return UniformPrecisions(self._trial(trial), found)

    def export_costs(self, out: str | Path) -> "CostTable":
        """Write the times that this search was solved on to a JSON file, for a job of another machine, which reads them
        by `measure: {table: OUT}`. Reads the sizes of the parent from its checkpoint."""
        with loading(self._console, f"costs of {self.name}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.stages.cost_table import table_of
        with opened(self.db, "read", self.progress) as store:
            return table_of(store, store.find_search(self.id)).write(Path(out))

    def layers(self, trial: Trial | int) -> tuple[LayerLine, ...]:
        """The trial layer by layer: what stands where, what it scores and what it costs."""
        found = self._own(trial)
        with opened(self.db, "read", self.progress) as store:
            return layers_of(store, store.find_search(self.id), found.row)

    def build(self, trial: Trial | int, *, time: bool = True) -> Trial:
        """The trial's child assembled, healed as the search's job says, evaluated and, unless `time` is False, timed
        beside its parent. Does only what is not done yet; a trial that is built is returned as it is.

        Raises `nas.errors.StaleSearchError` where the parent, the text or, for times, the machine is no longer the
        search's.
        """
        found = self._own(trial)
        with loading(self._console, f"build {found.id}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.stages.build import build_trial
        with opened(self.db, "write", self.progress) as store:
            row = build_trial(store, store.find_search(self.id), found.row, self._console, time)
            return self._trial(with_real_kls(store, row))

    def export(
        self,
        trial: Trial | int,
        out: str | Path,
        *,
        format: str = "hf",
        precision: str | None = None,
        dtype: str | None = None,
    ) -> "Exported":
        """Write a built trial's child as a folder that transformers ("hf"), vLLM ("decilm"), llama.cpp ("gguf") or
        whatever loads its parent ("plain") loads, load it again, and compare logits.

        `precision`: of a GGUF file, such as "q8_0", or fp8 or int4 in "decilm" and "plain". `dtype`: of the other
        formats, float32, bfloat16 or float16. None: what the search's scenario serves in.

        Raises FileNotFoundError where the trial is not built, FileExistsError where `out` is taken.
        """
        number = self._own(trial).id
        if number is None:
            raise NotFoundError("the trial is not kept, as its database can only be read: solve in a copy of it")
        with loading(self._console, f"export {number}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.export.formats import Target
            from nas.stages.export import export_trial
        with opened(self.db, "read", self.progress) as store, bar(self._console, "export and reload"):
            return export_trial(store, number, Target(format, precision, dtype), Path(out))

    def evaluate(
        self, trial: Trial | int, tasks: str | Sequence[str], *, limit: int | None = None, batch: int = 8,
        chat: bool = False,
    ) -> tuple[Evaluation, ...]:  # fmt: skip
        """The built child and its parent on tasks of lm_eval: names, task files or folders of them. A task that is
        known is not measured again.

        `limit`: the most samples of each task; None: all. `chat`: prompts are wrapped in the tokenizer's template.
        Raises `nas.errors.EvaluationError` where lm_eval is not installed, and for a task that is unknown, broken or
        gives no number; FileNotFoundError where the trial is not built.
        """
        found = self._own(trial)
        with loading(self._console, f"evaluate {found.id}"):
            import nas.terminal.quiet  # noqa: F401
            from nas.evaluation.evaluate import evaluate_trial
            from nas.evaluation.harness import HowEvaluated
        asked = [tasks] if isinstance(tasks, str) else list(tasks)
        with opened(self.db, "write", self.progress) as store:
            rows = evaluate_trial(store, found.row, asked, HowEvaluated(limit, batch, chat), self._console)
            return tuple(map(Evaluation.of, rows))

    def evaluations(self, trial: Trial | int) -> tuple[Evaluation, ...]:
        """The results of `evaluate` for the trial's child so far."""
        found = self._own(trial)
        with opened(self.db, "read", self.progress) as store:
            return tuple(map(Evaluation.of, store.evaluations(found.row.child_key)))

    def report(self, out: str | Path = "report.html", trial: Trial | int | None = None) -> Path:
        """Write one HTML page that opens offline. `trial`: the one to show beside the parent; None: the last built."""
        from nas.report import write_report

        with opened(self.db, "read", self.progress) as store, bar(self._console, "write the report"):
            chosen = None if trial is None else self._own(trial).row
            return write_report(store, store.find_search(self.id), Path(out), chosen)

    def __str__(self) -> str:
        return f"search {self.name} ({self.id}) of {self.row.parent}: {summary(self.row.parent_architecture)}"

    @property
    def _console(self) -> Console:
        return console_of(self.progress)

    def _own(self, trial: Trial | int) -> Trial:
        """A trial of this search. Raises `db.errors.NotFoundError` where it is another's."""
        found = self[trial] if isinstance(trial, int) else trial
        if found.row.search_id != self.id:
            raise NotFoundError(
                f"trial {found.id} is one of search {found.row.search_id}, not of {self.name} ({self.id})"
            )
        return found

    def _trial(self, row: models.TrialRow) -> Trial:
        return Trial(row, self.row)


def solve_across(
    searches: Sequence[Search],
    budget: Budget,
    *,
    metric: str | None = None,
    plain: bool = False,
    effort: Effort = USUAL,
) -> Trial:
    """The best architecture over searches that differ in their scenario, for instance one for each batch size.

    All are in the database of the first. A relative limit is of the parent's value in each scenario. `metric`, `plain`
    and what is raised are as of `Search.solve`; raises `nas.errors.IncomparableSearchesError` where their scores are of
    different parents or texts.
    """
    limits = limits_of(budget)
    if len({search.db for search in searches}) != 1:
        raise UsageError("name one search or several of one database")
    first = searches[0]
    with opened(first.db, "read", first.progress) as store, shown(console_of(first.progress)) as heard:
        known = [_known(store, search, metric, plain) for search in searches]
        effort = effort.with_progress(heard)
        best, solution = across.solve_across(known, limits, effort)
        trial = explain(store, best, limits, solution, proposed(store, best, solution, limits))
        return Trial(priced(store, best, limits, trial, effort), best.search)


def _known(store: Store, search: Search, metric: str | None, plain: bool) -> Measured:
    """The measurements of a search. `plain` asks for answers whose layers are of one size, whatever its space. Raises
    ScoreMetricError for a metric that its scores are not in."""
    row = store.find_search(search.id)
    if metric == "lm_loss" and request_of(row).predicts_scores:
        raise ScoreMetricError(
            f"search {row.name} ({row.id}) predicts scores of precisions, and rises of the loss cannot be predicted; "
            "minimise kl, or run its job with score.rounded: measured"
        )
    found = measured(store, row, metric)
    return replace(found, is_plain=found.is_plain or plain)


def limits_of(budget: Budget) -> tuple[Limit, ...]:
    """A budget's limits. Raises as `nas.job.units.parse_budget` does."""
    if isinstance(budget, str):
        return units.parse_budget(budget) if budget else ()
    if isinstance(budget, Mapping):
        return tuple(units.parse_limit(metric, text) for metric, text in budget.items())
    return tuple(budget)
