"""The commands that choose architectures from existing measurements. `nas/cli/main.py` registers them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import nas
from cost_models.metrics import METRICS
from nas.cli.arguments import AsJson, Db, SearchName
from nas.cli.printed import (
    NOT_KEPT,
    is_kept,
    print_alternatives,
    print_answer,
    print_cautions,
    print_comparison,
    print_front,
    print_json,
    print_trial,
)
from nas.errors import UsageError
from nas.files.output import check_output, image_format
from nas.job import units
from nas.terminal.console import console, talk_beside
from nas.terminal.progress import bar
from nas.terminal.signals import SIGNALS

if TYPE_CHECKING:
    from nas.answers import Trial
    from nas.solve.effort import Effort

MOST_POINTS, MOST_MODELS, MOST_SEEDS = 1000, 100_000, 1000
"""Larger numbers are taken for typing errors: they would run for days or fill the memory."""

_COSTS = [f"{metric.name}{' (more is better)' if metric.at_least else ''}" for metric in METRICS.values()]

Searches = Annotated[
    list[str] | None,
    typer.Argument(help="A search: its name, its id, or the start of its id. For several, it prints the best answer."),
]
TableFile = Annotated[Path | None, typer.Option(help="Instead of a search: a JSON file of options measured elsewhere.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(help="Limits: latency=50%,memory=1.5GiB; plain numbers for a table. May be repeated."),
]
Metric = Annotated[Literal["kl", "lm_loss"] | None, typer.Option(help="Score to minimise. Default: the search's own.")]
Objective = Annotated[str | None, typer.Option(help="The path in a table whose sum is minimised, like metrics.kl_div.")]
Gap = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Largest distance from the best, as a share of the score. Default: the search's own; for a table 1e-6.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(min=0.001, help="Seconds for each run of the solver. Default: the search's own; for a table 60."),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory that a solver may hold, like 4GB. Default: the search's own; for a table 2GB."),
]
EngineName = Annotated[
    Literal["highs", "cbc"] | None,
    typer.Option(help="MIP solver if the exact one runs out of memory. Default: the search's own; for a table highs."),
]
Evaluations = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_MODELS, help="Assemble this many candidates, measure the real KL of each, take the best."
    ),
]


@dataclass(frozen=True)
class SolveRequest:
    """The arguments of `nas solve`, for a search or for a table."""

    searches: tuple[str, ...]
    table: Path | None
    budget: tuple[str, ...]
    metric: str | None
    objective: str | None
    maximise: bool
    effort: "Effort"
    refine: int | None
    plain: bool
    db: str | None
    as_json: bool

    def check(self) -> None:
        """Raises UsageError unless either a search or a table is named, without options of the other."""
        if bool(self.searches) == (self.table is not None):
            given = "not both" if self.table else "neither is given"
            raise UsageError(f"name either a search or a table (--table FILE.json): {given}")
        of_search = {"--metric": self.metric, "--refine": self.refine, "--plain": self.plain, "--db": self.db}
        of_table = {"--objective": self.objective, "--maximise": self.maximise}
        for option, value in (of_search if self.table else of_table).items():
            if value:
                source = "a search, not with --table" if self.table else "--table, not a search"
                raise UsageError(f"{option} goes with {source}")
        if self.table is None and not self.budget:
            raise UsageError("there is no --budget; give one, like latency=50% or memory=1.5GiB")
        if self.refine is not None and len(self.searches) > 1:
            raise UsageError(
                f"--refine takes one search, not {len(self.searches)}; name the one that a sweep without --refine "
                "chooses"
            )


def solve(
    search: Searches = None,
    table: TableFile = None,
    budget: Limits = None,
    metric: Metric = None,
    objective: Objective = None,
    maximise: Annotated[bool, typer.Option("--maximise", help="More of a table's objective is better.")] = False,
    gap: Gap = None,
    time_limit: TimeLimit = None,
    memory: Memory = None,
    engine: EngineName = None,
    refine: Evaluations = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Layers of one size, which `nas export --format plain` carries.")
    ] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Solve a measured search for another budget, or a table.

    It takes seconds: nothing is measured or trained. Given several searches with the same parent and text, for instance
    one for each batch size, it prints the best answer. --refine takes longer: it assembles and measures whole
    architectures, to correct the sum of scores. --plain finds the best child that is a plain checkpoint of its parent's
    family, and says what that costs.

    Example: nas solve stories --budget latency=50%
    """
    _solve(
        SolveRequest(
            tuple(search or ()), table, tuple(budget or ()), metric, objective, maximise,
            _effort(gap, time_limit, engine, memory), refine, plain, db, as_json,
        )
    )  # fmt: skip


def _solve(asked: SolveRequest) -> None:
    asked.check()
    talk = talk_beside(asked.as_json)
    if asked.table is not None:
        from nas.solve.effort import shown

        with shown(talk, asked.maximise) as progress:
            effort = asked.effort.with_progress(progress)
            answer = nas.solve_table(asked.table, asked.objective, asked.budget, asked.maximise, effort)
        print_answer(answer, asked.as_json)
        return
    limits = _limits(asked.budget)
    searches = [nas.load(name, db=asked.db, progress=talk) for name in asked.searches]
    if asked.refine is None:
        trial = nas.solve_across(searches, limits, metric=asked.metric, plain=asked.plain, effort=asked.effort)
    else:
        trial = searches[0].solve(
            limits, metric=asked.metric, refine=asked.refine, plain=asked.plain, effort=asked.effort
        )
    _print_solved(trial, asked.as_json)


@dataclass(frozen=True)
class ParetoRequest:
    """The arguments of `nas pareto`."""

    search: str
    cost: str
    budget: tuple[str, ...]
    points: int
    plot: Path | None
    db: str | None
    as_json: bool
    memory: str | None
    only: Literal["precisions", "shapes"] | None


def pareto(
    search: SearchName,
    cost: Annotated[
        str, typer.Option(help=f"{', '.join(_COSTS[:-1])} or {_COSTS[-1]}.")
    ] = "latency",
    budget: Annotated[
        list[str] | None, typer.Option(help="Other limits to meet, like memory=2GiB. May be repeated.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, max=MOST_POINTS, help="Points along the front.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this .svg or .png file.")] = None,
    db: Db = None,
    as_json: AsJson = False,
    memory: Memory = None,
    only: Annotated[
        Literal["precisions", "shapes"] | None,
        typer.Option(help="Keep the parent's shapes, or one precision throughout. Default: choose both."),
    ] = None,
) -> None:  # fmt: skip
    """Find the best score at every cost.

    The front goes from the cheapest architecture to the parent. In a search that chose precisions, --only shows what
    precisions, or shapes, reach alone.

    Example: nas pareto stories --cost latency --plot front.svg
    """
    _pareto(ParetoRequest(search, cost, tuple(budget or ()), points, plot, db, as_json, memory, only))


def _pareto(asked: ParetoRequest) -> None:
    talk = talk_beside(asked.as_json)
    _check_plot(asked.plot)
    with bar(talk, f"front of {asked.search}", doing="loading libraries"):
        effort, limits = _effort(memory=asked.memory), _limits(asked.budget)
        search = nas.load(asked.search, db=asked.db, progress=talk)
    front = search.front(asked.cost, limits, asked.points, effort, asked.only)
    print_cautions(front.cautions, talk)
    if asked.plot is not None:
        with bar(talk, "draw the plot"):
            front.plot(asked.plot)
        talk.print(f"plot: {asked.plot}", soft_wrap=True)
    if asked.as_json:
        print_json([vars(point) for point in front])
        return
    print_front(front, asked.cost)


@dataclass(frozen=True)
class PoolRequest:
    """The arguments of `nas pool`."""

    search: str
    budget: tuple[str, ...]
    count: int
    apart: int
    effort: "Effort"
    total_s: float
    db: str | None
    as_json: bool


def pool(
    search: SearchName,
    budget: Annotated[
        list[str] | None, typer.Option(help="Limits. Default: the search's own. May be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="At most this many architectures, up to 1000.")] = 5,
    apart: Annotated[
        int, typer.Option(min=1, help="Any two differ in at least this many subblocks (attention or FFN).")
    ] = 1,
    time_limit: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for each of them. Default: the search's own.")
    ] = None,
    total_time: Annotated[float, typer.Option(min=0.001, help="Seconds for all of them together.")] = 600.0,
    memory: Memory = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Find several of the best architectures for a budget.

    The first is the best, and each further one is the best of those that differ from all before it. Each becomes a
    trial when it is found, and Ctrl-C or the time limit does not remove it. `nas trials --delete` deletes them.

    Example: nas pool stories --budget latency=50% --count 5 --apart 4
    """
    _pool(
        PoolRequest(
            search, tuple(budget or ()), count, apart, _effort(time_limit_s=time_limit, memory=memory), total_time, db,
            as_json,
        )
    )  # fmt: skip


def _pool(asked: PoolRequest) -> None:
    from nas.solve.pool import Wanted, check_count

    check_count(asked.count)
    limits, wanted = _limits(asked.budget), Wanted(asked.count, asked.apart, asked.total_s)
    search = nas.load(asked.search, db=asked.db, progress=talk_beside(asked.as_json))
    answer = search.alternatives(limits, wanted, asked.effort)
    print_alternatives(search.row, answer, asked.count, asked.as_json)
    if answer.ended == "interrupted":
        raise typer.Exit(SIGNALS.end())


@dataclass(frozen=True)
class CompareRequest:
    """The arguments of `nas compare`."""

    search: str
    budget: tuple[str, ...]
    only: tuple[str, ...]
    evaluations: int
    seeds: int
    heal: bool
    time: bool
    plot: Path | None
    db: str | None
    as_json: bool


def compare(
    search: SearchName,
    budget: Annotated[
        list[str] | None, typer.Option(help="Limits. Default: the search's own. May be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A strategy by its name, such as evolution. May be repeated. Default: all.")
    ] = None,
    evaluations: Annotated[
        int, typer.Option(min=1, max=MOST_MODELS, help="Whole models that evolution may run, and refining as well.")
    ] = 100,
    seeds: Annotated[int, typer.Option(min=0, max=MOST_SEEDS, help="Random architectures to compare with.")] = 3,
    heal: Annotated[bool, typer.Option(help="Heal every answer, each with the same tokens.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Time every answer beside the parent.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this .svg or .png file.")] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Compare the solver (MIP) with other strategies.

    Every answer is assembled and its real KL is measured. The trials of evolution are an Optuna study in the same
    database, which optuna-dashboard shows.

    Example: nas compare stories --budget latency=50% --evaluations 200
    """
    _compare(
        CompareRequest(
            search, tuple(budget or ()), tuple(only or ()), evaluations, seeds, heal, time, plot, db, as_json
        )
    )


def _compare(asked: CompareRequest) -> None:
    talk = talk_beside(asked.as_json)
    _check_plot(asked.plot)
    with bar(talk, f"compare {asked.search}", doing="loading libraries"):
        limits = _limits(asked.budget)
        known = nas.load(asked.search, db=asked.db, progress=talk)
    lines = known.compare(
        limits, only=asked.only, evaluations=asked.evaluations, seeds=asked.seeds, heal=asked.heal, time=asked.time
    )
    if asked.plot is not None:
        from nas.report.strategies import write_comparison

        write_comparison(lines, asked.plot)
    print_comparison(known.row, lines, asked.as_json)


def _check_plot(plot: Path | None) -> None:
    """Check the path before any work."""
    if plot is not None:
        image_format(plot)
        check_output(plot)


def _limits(budget: Sequence[str]) -> tuple[units.Limit, ...]:
    return units.parse_budget(",".join(budget)) if budget else ()


def _effort(
    gap: float | None = None,
    time_limit_s: float | None = None,
    engine: Literal["highs", "cbc"] | None = None,
    memory: str | None = None,
) -> "Effort":
    """The effort that was asked for."""
    from nas.solve.effort import Effort
    from solvers.exact.memory import checked_memory

    memory_bytes = None if memory is None else checked_memory(units.parse_quantity("memory", memory))
    return Effort(gap, time_limit_s, engine, memory_bytes=memory_bytes)


def _print_solved(trial: "Trial", as_json: bool) -> None:
    if as_json:
        print_json(trial.to_dict())
        return
    print_trial(trial.search_row, trial.row)
    if not is_kept(trial.row):
        console.print(f"\n{NOT_KEPT}", soft_wrap=True)
        return
    console.print(f"\nTo build it: nas build {trial.id}. Details: nas show {trial.id}", soft_wrap=True)
