"""The whole product on one page: a request in, a measured child out.

Every stage asks the store before it works, so a finished search measures and trains nothing when it runs again, and an
interrupted one resumes. This process alone writes the database.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from db import models
from db.models import now
from db.store import Store
from nas.cluster.shared_files import check_home, check_parent
from nas.cluster.tasks import STARTING, Cluster
from nas.errors import BudgetNotMetError, OutputExistsError
from nas.export.formats import Target
from nas.files.home import child_file
from nas.job.request import Request
from nas.job.units import Limit, parse_limit
from nas.report import write_report
from nas.solve.budget_loop import ATTEMPTS, Verdict, of_all, retargeted, times_of, verdict, worst_overshoot
from nas.solve.effort import Effort, shown
from nas.solve.explain import explain
from nas.solve.plain_price import priced, with_real_kls
from nas.solve.predicted import predict_again
from nas.solve.solve import Measured, measured, solve, trial_row
from nas.stages.check_plan import plan_warnings
from nas.stages.check_scores import check_scores
from nas.stages.child import hardware_of, healing_key, is_timed, made, timed
from nas.stages.child_file import found_with
from nas.stages.context import Context
from nas.stages.correct_costs import correct_costs
from nas.stages.costs import measure_costs, parent_costs, write_options
from nas.stages.devices import plan_inputs
from nas.stages.evaluate import Evaluations
from nas.stages.export import Delivery, delivered
from nas.stages.heal_workers import check_healing
from nas.stages.library import build_library, measure_dependency, score_choices
from nas.stages.predict_scores import predict_scores
from nas.stages.prepare import Job, prepare
from nas.stages.refine import solve_refined
from nas.stages.rounding import round_library
from nas.stages.score_kv_cache import score_caches
from nas.terminal.progress import bar
from nas.terminal.signals import SIGNALS
from solvers.problem import Solution


@dataclass(frozen=True)
class Outcome:
    """The result of a search."""

    search: models.SearchRow
    trial: models.TrialRow
    child: Path
    report: Path
    sentence: str


def search(request: Request, store: Store, console: Console, remeasure: bool = False) -> Outcome:
    """Run a request to its end. Raises a NasError that says what is wrong; nothing finished is lost.

    `remeasure`: times that were taken before are taken again, of children those that are known to be bad.
    """
    _refuse_taken_folder(request, store)
    with Cluster(request.ray.address) as cluster:
        with bar(console, f"search {request.name}", doing="looking at its home from every node") as shown:
            check_home(cluster, request.home)
            check_healing(request, cluster)
            shown.say("loading the parent and the text")
            job = prepare(request, hardware_of(request, cluster), store.tune_trials)
            check_parent(cluster, job.parent)
        known = {known.id: known for known in store.searches()}.get(job.id)
        if known is not None:
            if known.name != request.name:
                console.print(
                    f"{request.name}: this parent, text, space and scenario belong to the search {known.name}; it "
                    "keeps that name",
                    soft_wrap=True,
                )
            # Others know it by its first name, in their commands and its reports.
            known_as = job.request.model_copy(update={"name": known.name})
            job = replace(job, request=known_as, dependency=known.dependency)
        store.add_search(search_row(job, known.parent_costs if known else {}))
        kept = f", {len(job.caches)} types of keys and values" if job.caches else ""
        console.print(
            f"search {job.request.name} ({job.id}): {len(job.variants)} options beside the parent's own{kept}"
        )
        console.print(job.tokens.describe(), style="dim", soft_wrap=True)
        if job.trains:
            console.print(f"learning rate of distillation: {job.rate}", soft_wrap=True, highlight=False)
        for note in (*job.parent.notes, *(plan_warnings(plan_inputs(job)) if cluster.is_here else ())):
            console.print(note, soft_wrap=True, highlight=False)
        try:
            context = fill_store(Context.of(job, store, cluster, console), remeasure)
            outcome = _delivered(context, _found(context, remeasure))
        except KeyboardInterrupt:
            store.set_search_status(job.id, "interrupted")
            raise
        except Exception as error:
            if SIGNALS.is_asked:  # and a library made something else of it
                store.set_search_status(job.id, "interrupted")
                raise
            store.set_search_status(job.id, "failed")
            store.add_failure(
                models.FailureRow(search_id=job.id, stage="search", place=type(error).__name__, reason=str(error))
            )
            raise
        store.set_search_status(job.id, "finished")
        return outcome


def fill_store(context: Context, remeasure: bool = False) -> Context:
    """Build, score and measure whatever the library and the store lack of this job. Returns the context with what
    decides its job's choices known. `remeasure`: all times are taken again."""
    job, store = context.job, context.store
    with _stage(context, "depend") as done:
        done.append(int(job.wants_dependency))
        if job.wants_dependency:
            job = replace(job, dependency=measure_dependency(context))
            context = replace(context, job=job)
            # Before hours of work that depend on it.
            store.add_search(search_row(job, store.find_search(job.id).parent_costs))
    with _stage(context, "distil") as done:
        done.append(build_library(context))
    if job.to_round:
        with _stage(context, "round") as done:
            done.append(round_library(context))
    with _stage(context, "score") as done:
        done.append(score_choices(context, context.job.to_score) + predict_scores(context) + score_caches(context))
    with _stage(context, "measure") as done:
        done.append(measure_costs(context, remeasure) + correct_costs(context, remeasure))
    write_options(job, store)
    search = store.add_search(search_row(job, parent_costs(job, store)))
    predict_again(store, measured(store, search, job.request.score.metric))
    return context


def _found(context: Context, remeasure: bool) -> models.TrialRow:
    """Solve, and make the answer real."""
    trial = _within_budget(context, remeasure)
    _refuse_taken(context.job, trial)
    with _stage(context, "heal") as done:
        done.append(int(trial.kl is None))
        return _priced(context, made(context, trial))


def _priced(context: Context, trial: models.TrialRow) -> models.TrialRow:
    """The trial with the price of being plain, if it is, for the limits that it was solved for."""
    job, store = context.job, context.store
    known = measured(store, store.find_search(job.id), job.request.score.metric)
    limits = (
        job.request.budget if trial.solved_for is None else [parse_limit(*limit) for limit in trial.solved_for.items()]
    )
    return priced(store, known, limits, trial)


def _within_budget(context: Context, remeasure: bool) -> models.TrialRow:
    """The best architecture that meets the budget when it is timed as a whole; if none does, the best whose verdict is
    undecided. Every architecture that was timed stays a trial."""
    job, store, console, request = context.job, context.store, context.console, context.job.request
    known = measured(store, store.find_search(job.id), request.score.metric)
    solve_for = request.budget
    with _stage(context, "solve") as done:
        tried: list[models.TrialRow] = []
        distances: dict[int, float] = {}
        while len(tried) < ATTEMPTS:
            try:
                known, checked = _checked(context, known, solve_for)
                done.append(checked)
                solution, distance = _solution(store, known, solve_for, console)
            except (BudgetNotMetError, TimeoutError) as error:
                if not tried:
                    raise
                # The budget itself can be met on paper; the limits that timing has moved cannot, or not in the time.
                console.print(f"no other architecture was found: {error}", soft_wrap=True)
                break
            trial = store.add_trial(trial_row(known, solution, request.budget, healing_key(job), solve_for))
            if request.solver.refine is None:
                # If it was proven for the budget itself before, explain it by that, not by limits near it.
                limits = solve_for if trial.solved_for is not None else request.budget
                trial = explain(store, known, limits, solution, trial)
            done.append(int(not is_timed(trial)))
            if not job.is_timed_here:
                return trial  # There is no such machine here to time it on.
            is_known = trial.id in distances
            distances[trial.id] = distance
            tried.append(timed(context, trial, remeasure))
            allowed = request.measure.contention_allowed
            before, solve_for = solve_for, retargeted(request.budget, tried[-1], solve_for, allowed)
            # If the same answer comes again although limits were loosened, a counted metric limits it.
            if solve_for == before or (is_known and _verdict(tried[-1], request) == "met"):
                break
    for wanted in ("met", "undecided"):
        if within := [trial for trial in tried if _verdict(trial, request) == wanted]:
            best = min(within, key=lambda trial: distances[trial.id])
            if wanted == "undecided":
                _tell_undecided(best, console)
            return best
    nearest = min(tried, key=lambda trial: worst_overshoot(trial, request.budget))
    console.print(
        f"none of the {len(distances)} architectures that were timed is within the budget; the nearest misses it by "
        f"{worst_overshoot(nearest, request.budget) - 1:.1%} and is built"
    )
    return nearest


def _verdict(trial: models.TrialRow, request: Request) -> Verdict:
    times, allowed = times_of(trial), request.measure.contention_allowed
    return of_all(verdict(times, asked, allowed) for asked in request.budget)


def _tell_undecided(trial: models.TrialRow, console: Console) -> None:
    measured_as = ""
    if trial.latency_ratio is not None and trial.latency_spread is not None:
        points = trial.latency_ratio * trial.latency_spread
        measured_as = f", at {trial.latency_ratio:.1%} ± {points:.1%} of the parent's latency"
    busy = "" if not trial.contention else f" and a CPU contention of {trial.contention:.0%}"
    console.print(
        f"it is undecided whether trial {trial.id} is within the budget{measured_as}{busy}; to time it again when the "
        "machine is idle: nas search JOB --remeasure",
        style="yellow", soft_wrap=True, highlight=False,
    )  # fmt: skip


def _checked(context: Context, known: Measured, budget: Sequence[Limit]) -> tuple[Measured, int]:
    """The search with the predicted scores that its answer stands on measured, where the job wants that; and how many
    scores that took."""
    if context.job.request.score.rounded != "checked":
        return known, 0
    known, misses = check_scores(context, known, budget)
    if misses.shares:
        context.console.print(misses.said(), soft_wrap=True, highlight=False)
    return known, len(misses.shares)


def _solution(store: Store, known: Measured, budget: Sequence[Limit], console: Console) -> tuple[Solution, float]:
    """The best by the sum of scores, or past it where the job asks for that; and its sum, or its real KL."""
    evaluations = known.request.solver.refine
    if evaluations is None:
        with shown(console) as progress:
            solution = solve(known, budget, Effort(progress=progress))
        return solution, solution.score
    solution, trial = solve_refined(store, known, budget, evaluations, console)
    assert trial.kl_whole is not None
    return solution, trial.kl_whole


def _delivered(context: Context, trial: models.TrialRow) -> Outcome:
    """Export the child and write the report, where that is not done yet."""
    job, store, console = context.job, context.store, context.console
    found = store.find_search(job.id)
    _refuse_taken(job, trial)
    out, target = _out(job, trial), _target(job)
    # Noted before it is there: a run killed in between finds a folder of ours, not a stranger's.
    trial = with_real_kls(store, store.own_child_path(trial.id, str(out), str(target)))
    # A folder appears under its name only when it is whole.
    if not _is_filled(out):
        with _stage(context, "export"), bar(console, "export and reload", doing=STARTING) as shown:
            try:
                notes = context.cluster.run_here(delivered, Delivery(job.home, found, trial, target, out), shown).notes
            except FileExistsError:
                notes = ("another run of this search exported the child in the meantime",)
        for note in notes:
            console.print(note, soft_wrap=True, highlight=False)
    report = job.home / "reports" / f"{job.id}.html"
    with bar(console, "write the report"):
        write_report(store, found, report, trial)
    sample = Evaluations.of(found_with(child_file(job.home, trial.child_key))).sample
    sentence = str(job.tokenizer.decode(list(sample), skip_special_tokens=True))
    return Outcome(found, trial, out, report, sentence)


def search_row(job: Job, costs: dict[str, Any]) -> models.SearchRow:
    """The job as the store keeps it; `costs` is the parent's, empty until everything is measured."""
    scenario = job.scenario
    return models.SearchRow(
        id=job.id,
        name=job.request.name,
        parent=job.request.parent,
        parent_digest=job.parent.digest,
        score_text=job.tokens.digest("score"),
        parent_architecture=str(job.parent.architecture),
        request=job.request.canonical(),
        scenario=vars(scenario),
        hardware=job.hardware,
        parent_costs=costs,
        dependency=None if job.dependency is None else [list(row) for row in job.dependency],
        rate_source=job.rate.source if job.trains else None,
    )


def _target(job: Job) -> Target:
    return Target(job.request.export_format, job.request.export.precision)


def _out(job: Job, trial: models.TrialRow) -> Path:
    """Where the child is exported to."""
    return job.request.export.out or job.home / "exports" / trial.key / str(_target(job))


def _refuse_taken(job: Job, trial: models.TrialRow) -> None:
    """Where something else than this trial's child, in this format, stands in its place."""
    out = _out(job, trial)
    ours = trial.child_path == str(out) and trial.export_format == str(_target(job))
    if job.request.export.out is not None and _is_filled(out) and not ours:
        raise OutputExistsError(
            f"export.out: {out} holds another child, or this one in another format; remove it, or name another folder"
        )


def _refuse_taken_folder(request: Request, store: Store) -> None:
    """Before hours of work rather than after: a folder someone else filled. One of our own children may stand there."""
    out = request.export.out
    if out is None or any(trial.child_path == str(out) for trial in store.trials()):
        return
    if _is_filled(out):
        raise OutputExistsError(f"export.out: {out} exists and is not empty; remove it, or name another folder")


def _is_filled(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def _stage(context: Context, name: str) -> Iterator[list[int]]:
    """Times a stage and writes it down; the block appends how many units it really computed."""
    started, clock = now(), monotonic()
    done: list[int] = []
    yield done
    seconds = monotonic() - clock
    context.store.add_stage(
        models.StageRow(search_id=context.job.id, name=name, started_at=started, seconds=seconds, work_done=sum(done))
    )
