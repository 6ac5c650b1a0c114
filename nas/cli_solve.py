"""The commands that choose architectures on what is measured already. `nas/cli.py` puts them beside the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from cost_models.metrics import METRICS
from nas import units
from nas.arguments import AsJson, Db, SearchName, open_store
from nas.errors import UsageError
from nas.output_files import check_output, image_format
from nas.printed import (
    NOT_KEPT,
    console,
    is_kept,
    print_alternatives,
    print_answer,
    print_cautions,
    print_comparison,
    print_front,
    print_json,
    print_trial,
    talk_beside,
)
from nas.progress import bar
from nas.signals import SIGNALS

if TYPE_CHECKING:
    from nas.answers import Trial
    from nas.effort import Effort

MOST_POINTS, MOST_MODELS, MOST_SEEDS = 1000, 100_000, 1000
"""More than these is a slip of the finger, which would run for days or fill the memory."""

_COSTS = [f"{metric.name}{' (more is better)' if metric.at_least else ''}" for metric in METRICS.values()]

Searches = Annotated[
    list[str] | None,
    typer.Argument(help="A search: its name, its id, or the start of its id. From several, the best answer is kept."),
]
TableFile = Annotated[Path | None, typer.Option(help="Instead of a search: a JSON file of options measured elsewhere.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(help="Limits: latency=50%,memory=1.5GiB; plain numbers for a table. May be repeated."),
]
Metric = Annotated[Literal["kl", "lm_loss"] | None, typer.Option(help="Score to minimise. Default: the search's own.")]
Objective = Annotated[str | None, typer.Option(help="The path to minimise in a table, like metrics.kl_div.")]
Gap = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="How far from the best an answer may be, as a share. Default: the search's own; for a table 1e-6.",
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
    typer.Option(help="MIP solver for what the exact one leaves open. Default: the search's own; for a table highs."),
]
Evaluations = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_MODELS, help="Assemble this many candidates, measure the real KL of each, take the best."
    ),
]


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
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Solve a measured search for another budget, or a table.

    It takes seconds: nothing is measured or trained.
    Several searches with one parent and text, for instance one for each batch size, give the best answer of all.
    --refine takes longer: it assembles and measures whole architectures, to learn what the sum of scores misses.

    Example: nas solve stories --budget latency=50%
    """
    from nas.effort import Effort

    of_search = {"--metric": metric, "--refine": refine, "--db": db}
    _one_source(bool(search), table, of_search, {"--objective": objective, "--maximise": maximise})
    talk = talk_beside(as_json)
    if table is not None:
        from nas.solve_table import solve_table

        with _effort(gap, time_limit, engine, talk, maximise, memory) as effort:
            answer = solve_table(table, objective, budget or (), maximise, effort)
        print_answer(answer, as_json)
        return
    if not budget:
        raise UsageError("a search is solved for a --budget, like latency=50% or memory=1.5GiB")
    from nas.api import load, solve_across

    effort, limits = Effort(gap, time_limit, engine, memory_bytes=_bytes(memory)), _limits(budget)
    found = [load(name, db=db, progress=talk) for name in search or ()]
    if refine is None:
        trial = solve_across(found, limits, metric=metric, effort=effort)
    elif len(found) == 1:
        trial = found[0].solve(limits, metric=metric, refine=refine, effort=effort)
    else:
        raise UsageError(
            f"--refine takes one search, not {len(found)}; name the one that a sweep without --refine chooses"
        )
    _print_solved(trial, as_json)


def pareto(
    search: SearchName,
    cost: Annotated[
        str, typer.Option(help=f"{', '.join(_COSTS[:-1])} or {_COSTS[-1]}.")
    ] = "latency",
    budget: Annotated[
        list[str] | None, typer.Option(help="Other limits to hold, like memory=2GiB. May be repeated.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, max=MOST_POINTS, help="Points along the front.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this .svg or .png file.")] = None,
    db: Db = None,
    as_json: AsJson = False,
    memory: Memory = None,
) -> None:  # fmt: skip
    """Find the best score at every cost.

    The front goes from the cheapest architecture to the parent.

    Example: nas pareto stories --cost latency --plot front.svg
    """
    talk = talk_beside(as_json)
    _check_plot(plot)
    with bar(talk, f"front of {search}", doing="loading libraries"):
        from nas.api import load
        from nas.effort import Effort

    effort, limits = Effort(memory_bytes=_bytes(memory)), _limits(budget)
    front = load(search, db=db, progress=talk).front(cost, limits, points, effort)
    print_cautions(front.cautions, talk)
    if plot is not None:
        with bar(talk, "draw the plot"):
            front.plot(plot)
        talk.print(f"plot: {plot}", soft_wrap=True)
    if as_json:
        print_json([vars(point) for point in front])
        return
    print_front(front, cost)


def pool(
    search: SearchName,
    budget: Annotated[
        list[str] | None, typer.Option(help="Limits. Default: the search's own. May be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="At most this many architectures, up to 1000.")] = 5,
    apart: Annotated[
        int, typer.Option(min=1, help="Any two differ in at least this many subblocks (attention or FFN, two a layer).")
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
    trial as it is found, and stays one after Ctrl-C or the time limit. `nas trials --delete` deletes them.

    Example: nas pool stories --budget latency=50% --count 5 --apart 4
    """
    from nas.counting import counted
    from nas.effort import Effort
    from nas.pool import alternatives, check_count
    from nas.solve import measured

    check_count(count)
    with open_store(db, "read") as store, counted(talk_beside(as_json), count, total_time) as told:
        known = measured(store, store.find_search(search))
        effort = Effort(None, time_limit, None, told.solving, _bytes(memory))
        limits = _limits(budget) or known.budget
        found = alternatives(store, known, limits, count, apart, effort, total_time, told.found)
    print_alternatives(known, found, count, as_json)
    if found.ended == "interrupted":
        raise typer.Exit(SIGNALS.end())


def compare(
    search: SearchName,
    budget: Annotated[
        list[str] | None, typer.Option(help="Limits. Default: the search's own. May be repeated.")
    ] = None,
    evaluations: Annotated[
        int, typer.Option(min=1, max=MOST_MODELS, help="Whole models that evolution and refining may run each.")
    ] = 100,
    seeds: Annotated[int, typer.Option(min=0, max=MOST_SEEDS, help="Random architectures to compare with.")] = 3,
    heal: Annotated[bool, typer.Option(help="Heal every answer, all with as many tokens.")] = False,
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
    talk = talk_beside(as_json)
    _check_plot(plot)
    with bar(talk, f"compare {search}", doing="loading libraries"):
        from nas.api import load

    limits = _limits(budget)
    known = load(search, db=db, progress=talk)
    lines = known.compare(limits, evaluations=evaluations, seeds=seeds, heal=heal, time=time)
    if plot is not None:
        from nas.report.versus import write_comparison

        write_comparison(lines, plot)
    print_comparison(known.row, lines, as_json)


def _check_plot(plot: Path | None) -> None:
    """Before the work rather than after."""
    if plot is not None:
        image_format(plot)
        check_output(plot)


def _limits(budget: list[str] | None) -> tuple[units.Limit, ...]:
    return units.parse_budget(",".join(budget)) if budget else ()


@contextmanager
def _effort(
    gap: float | None,
    time_limit_s: float | None,
    engine: Literal["highs", "cbc"] | None,
    talk: Console,
    maximise: bool = False,
    memory: str | None = None,
) -> Iterator["Effort"]:
    """The effort that was asked for, with its progress on a terminal."""
    from nas.effort import Effort, shown

    memory_bytes = _bytes(memory)
    with shown(talk, maximise) as progress:
        yield Effort(gap, time_limit_s, engine, progress, memory_bytes)


def _bytes(memory: str | None) -> float | None:
    from solvers.memory import checked_memory

    return None if memory is None else checked_memory(units.parse_quantity("memory", memory))


def _print_solved(trial: "Trial", as_json: bool) -> None:
    if as_json:
        print_json(trial.to_dict())
        return
    print_trial(trial.search_row, trial.row)
    if not is_kept(trial.row):
        console.print(f"\n{NOT_KEPT}", soft_wrap=True)
        return
    console.print(f"\nTo build it: nas build {trial.id}. Details: nas show {trial.id}", soft_wrap=True)


def _one_source(has_search: bool, table: Path | None, of_search: dict[str, Any], of_table: dict[str, Any]) -> None:
    """Check that one source is named, a search or a table, and no option of the other."""
    if has_search == (table is not None):
        given = "not both" if table else "neither is given"
        raise UsageError(f"name a search, or a table that was measured elsewhere with --table FILE.json: {given}")
    for option, value in (of_search if table else of_table).items():
        if value:
            raise UsageError(f"{option} goes with {'a search, not with --table' if table else '--table, not a search'}")
