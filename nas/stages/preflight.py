"""Check a job before anything is loaded, distilled or timed: its parent's files, its sizes and this machine. The files
come first, because they do not need torch; it is imported for the other checks.
"""

from collections.abc import Callable
from pathlib import Path

from blocklib.checkpoint import inspect
from blocklib.gguf_header import is_gguf
from cost_models.energy.meter import POWERCAP, meter_of
from cost_models.errors import NoMeterError
from nas.cluster.tasks import Cluster
from nas.errors import JobError
from nas.job.context_length import check_positions
from nas.job.request import Request
from nas.job.units import needs_meter
from nas.text.parent_folder import check_gguf, parent_folder
from nas.text.tokenizer import check_tokenizer


def check(request: Request, say: Callable[[str], object] = lambda _: None) -> None:
    """Raise a NasError that names the file or the key if a search of this request would fail.

    Checks that depend on this machine are left out if the work is done on a cluster. `say` is told what takes long.
    """
    _check(request, Cluster(request.ray.address).is_here, say)


def check_submitted(request: Request) -> None:
    """The same for a request that runs elsewhere, as far as its files exist here. It must not ask for code of a
    checkpoint."""
    if request.allow_remote_code:
        raise JobError(
            "allow_remote_code: a submitted job runs no code from a checkpoint; leave it out, or run `nas search` on a "
            "machine of your own"
        )
    if is_gguf(request.checkpoint):
        check_gguf(Path(request.checkpoint))  # the head unpacks it
    elif Path(request.checkpoint).is_dir():
        _check(request, is_here=False)


def check_meter(request: Request, powercap: Path = POWERCAP) -> None:
    """Raise NoMeterError where the budget limits energy, and this machine has no meter for it: `powercap` is where
    the kernel shows a CPU's."""
    if not needs_meter(request.budget):
        return
    if request.scenario.flash is not None:
        raise NoMeterError(
            "budget.energy: a simulated machine (scenario.flash) has no energy meter; leave out one of the two"
        )
    import nas.terminal.quiet  # noqa: F401  (silences libraries before they load)

    try:
        meter_of(request.scenario.device, powercap)
    except NoMeterError as error:
        raise NoMeterError(f"budget.energy: {error}") from error


def _check(request: Request, is_here: bool, say: Callable[[str], object] = lambda _: None) -> None:
    if is_here or request.scenario.flash is not None:
        check_meter(request)
    folder = parent_folder(request.checkpoint, request.home, code=request.allow_remote_code, say=say)
    checkpoint = inspect(folder)
    check_tokenizer(folder, request.allow_remote_code)
    if checkpoint.positions is not None:
        check_positions(request, checkpoint.positions)
    import nas.terminal.quiet  # noqa: F401  (silences libraries before they load)
    from nas.stages.feasible import check_parent

    check_parent(request, checkpoint, is_here)
