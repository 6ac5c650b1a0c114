"""The functions of the Python API that begin: run a search or load one, tune, plan, measure, serve.

Each loads the libraries it needs when it is called, so that questions to the database stay quick.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nas.terminal.console import Progress, console_of
from nas.terminal.progress import loading

if TYPE_CHECKING:
    from nas.job.fusion_candidates import Joining
    from nas.job.request import Request
    from nas.planning.plan import Plan
    from nas.scoring.block_dependency import Dependency
    from nas.search import Search
    from nas.serving.bench import Load, SideBySide
    from nas.serving.serve import Served
    from nas.stages.cost_table import CostTable
    from nas.stages.tune import Tuning


def run(
    job: "str | Path | Request", *, db: str | Path | None = None, progress: Progress = True, remeasure: bool = False
) -> "Search":
    """Run a job file to its end; an interrupted search resumes, and one that is finished does no work.

    `db`: a file or an SQLAlchemy URL; None: $NAS_DB, else `nas.db` in $NAS_HOME or ~/.puzzle-nas. `remeasure`: all
    times are taken again. Raises `nas.errors.JobError` for a job that is wrong, ValueError or OSError for what else is,
    with nothing finished lost.
    """
    from nas.job import config

    request = config.load(job) if isinstance(job, str | Path) else job
    console = console_of(progress)
    with loading(console, f"search {request.name}") as shown:
        from nas.stages.preflight import check

        check(request, shown.say)
        import nas.terminal.quiet  # noqa: F401  (silences libraries before they load)
        from nas.files.database import opened
        from nas.pipeline import search
        from nas.search import Search

    with opened(db, "create", progress) as store:
        outcome = search(request, store, console, remeasure)
        return Search(outcome.search, store.url, progress, outcome)


def load(search: str, *, db: str | Path | None = None, progress: Progress = True) -> "Search":
    """A search that was run before: by its name, its id, or the start of its id. Reads the database alone.

    Raises `db.errors.NotFoundError` where there is none.
    """
    from nas.files.database import opened
    from nas.search import Search

    with opened(db, "read", progress) as store:
        return Search(store.find_search(search), store.url, progress)


def of_trial(trial: int, *, db: str | Path | None = None, progress: Progress = True) -> "Search":
    """The search that a trial is of. Raises `db.errors.NotFoundError` where there is no such trial."""
    from nas.files.database import opened
    from nas.search import Search

    with opened(db, "read", progress) as store:
        return Search(store.find_search(store.trial(trial).search_id), store.url, progress)


def measure(
    job: "str | Path | Request",
    out: str | Path,
    *,
    engine: str | None = None,
    dtype: str | None = None,
    progress: Progress = True,
) -> "CostTable":
    """Measure the costs of a job's options on this machine, and write them to `out` as JSON; a job on another machine
    reads them by `measure: {table: OUT}`. Needs the parent's checkpoint, and no text.

    `engine` and `dtype`: None: the job's. An interrupted run goes on. Raises `nas.errors.JobError` for a job that is
    wrong, `nas.errors.TableError` where `out` holds times of another machine or scenario.
    """
    from nas.files.output import check_output
    from nas.job import config

    file = check_output(Path(out))
    request = config.load(job, reads_text=False) if isinstance(job, str | Path) else job
    console = console_of(progress)
    with loading(console, f"measure {request.name}"):
        import nas.terminal.quiet  # noqa: F401
        from nas.stages.measure_table import measure_table

    return measure_table(config.served_by(request, engine, dtype), file, console)


def plan(
    job: str | Path,
    *,
    hardware: str | None = None,
    parent_config: str | Path | None = None,
    progress: Progress = True,
) -> "Plan":
    """The need of each stage of a job: memory on a device and in main memory, disk, work and time. Nothing is read but
    the job, and of the parent its configuration and the headers of its files; no text.

    `hardware`: "h100x8" or the like; None: this machine. `parent_config`: the config.json of a parent that need not be
    here. Raises `nas.errors.PlanError` for hardware that is not known, and what looking at a job and a parent raises.
    """
    from nas.job import config

    request = config.load(job, reads_text=False, parent="embedded" if parent_config is not None else None)
    with loading(console_of(progress), f"plan {request.name}"):
        import nas.terminal.quiet  # noqa: F401
        from nas.planning.look import inputs_of_job
        from nas.planning.plan import plan as planned

    return planned(inputs_of_job(request, hardware, None if parent_config is None else Path(parent_config)))


def tune(
    job: "str | Path | Request",
    *,
    trials: int = 10,
    layers: Sequence[int] | None = None,
    db: str | Path | None = None,
    progress: Progress = True,
) -> "Tuning":
    """Find the learning rate of distillation for a job's parent: subblocks of a few layers are trained at several
    rates, until there are `trials` of them in the database. The next search of this parent takes the best, unless its
    job says `distill.learning_rate`.

    `layers`: their numbers from 0; None: the first, the middle and the last. `db` as for `run`. Raises
    `nas.errors.JobError` for a job that is wrong or trains nothing, `nas.errors.UsageError` for layers that the parent
    has not, `nas.errors.TuningError` where no rate ended with a finite loss.
    """
    from nas.job import config

    request = config.load(job) if isinstance(job, str | Path) else job
    console = console_of(progress)
    with loading(console, f"tune {request.name}") as shown:
        from nas.stages.preflight import check

        check(request, shown.say)
        import nas.terminal.quiet  # noqa: F401
        from nas.files.database import opened
        from nas.stages.tune import TuneRequest
        from nas.stages.tune import tune as tuned

    with opened(db, "create", progress) as store:
        return tuned(request, store, console, TuneRequest(trials, layers))


def dependency(
    parent: str,
    texts: Sequence[str] = (),
    *,
    tokens: int = 8192,
    joining: "Joining | None" = None,
    progress: Progress = True,
) -> "Dependency":
    """How much each block of a parent depends on those before it, and which neighbours can be fused or run in parallel.

    `parent`: `embedded`, the folder of a checkpoint, a GGUF file or a hub id. `texts`: files and globs; none: Python's
    own sources. `joining`: what counts as low dependency, and how many neighbours may be joined. Raises a
    `nas.errors.NasError` that names what is wrong.
    """
    console = console_of(progress)
    with loading(console, f"block dependency of {parent}"):
        import nas.terminal.quiet  # noqa: F401
        from nas.job.fusion_candidates import Joining
        from nas.scoring.block_dependency import dependency_of

    return dependency_of(parent, texts, tokens, joining or Joining(), console)


def bench(
    children: "Sequence[str | Path | int]",
    *,
    parent: str | Path | None = None,
    load: "Load | Mapping[str, int | str | None] | None" = None,
    engine: str | None = None,
    db: str | Path | None = None,
    progress: Progress = True,
) -> "SideBySide":
    """Time models side by side in their engines. A child: a trial's number, a search's name, a folder, a .gguf file.

    `parent` None: that of the first trial. `load`: batch, prompt_tokens, generated_tokens, threads, rounds, device,
    kv_cache (llama.cpp's type of keys and values).
    `engine`: what they run in, "torch", "torch_compile", "vllm" or "llama_cpp"; None: a trial in that of its scenario.
    Raises `nas.errors.UsageError`, `MissingFileError`, and the engines' `cost_models.errors`.
    """
    console = console_of(progress)
    with loading(console, "bench"):
        import nas.terminal.quiet  # noqa: F401
        from nas.serving.bench import Load, bench_artefacts
        from nas.serving.named import Where, models_beside_parent
    asked = load if isinstance(load, Load) else Load(**(load or {}))  # type: ignore[arg-type]
    found = models_beside_parent(children, parent, engine, asked.device, Where(db, console))
    return bench_artefacts(found, asked, console)


@contextmanager
def serve(
    model: str | Path | int,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    engine: str | None = None,
    db: str | Path | None = None,
    progress: Progress = True,
) -> "Iterator[Served]":
    """The engine's own OpenAI-compatible server on a model, named as for `bench`, until the end of the block.

    `engine`: "llama_cpp" for GGUF files, "vllm" for folders; None: what the model is, of a trial "llama_cpp". Raises
    `nas.errors.UsageError` where the port is taken, and the engines' `cost_models.errors`.
    """
    console = console_of(progress)
    with loading(console, "serve"):
        import nas.terminal.quiet  # noqa: F401
        from nas.serving.named import Where, model_named
        from nas.serving.serve import Endpoint, served
    with served(model_named(model, engine, Where(db, console)), engine, Endpoint(host, port)) as server:
        yield server
