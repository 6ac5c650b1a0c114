"""The commands that submit a search to a Ray cluster and follow it. `nas/cli/main.py` registers them."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.arguments import Db
from nas.errors import JobFailedError
from nas.terminal.console import console, talk_beside
from nas.terminal.progress import bar

if TYPE_CHECKING:
    from nas.cluster.addresses import Address

_ADDRESS_HELP = "The Ray head's dashboard. Default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else http://127.0.0.1:8265."
Head = Annotated[str | None, typer.Option("--address", help=_ADDRESS_HELP)]
JobNumber = Annotated[str, typer.Argument(help="The number that `nas submit` printed.")]


def submit(
    job: Annotated[Path, typer.Argument(help="The job file. All nodes must see the paths that it names.")],
    address: Head = None,
    db: Db = None,
    wait: Annotated[bool, typer.Option(help="Follow the logs until the job ends.")] = True,
) -> None:
    """Submit a search to a Ray cluster through its Jobs API.

    Example: nas submit job.yaml --address http://HEAD:8265
    """
    from nas.cluster import addresses, submission
    from nas.job import config
    from nas.stages.preflight import check_submitted

    request, head = config.load(job), addresses.dashboard(address)
    check_submitted(request)
    with bar(console, f"submit {request.name} to {head.shown}"):
        number = submission.submit(request, head, db, _say)
    if wait:
        _end_with(_followed(number, head), number)


def status(job: JobNumber, address: Head = None) -> None:
    """Print the state of a submitted job.

    Example: nas status raysubmit_1234 --address http://HEAD:8265
    """
    from nas.cluster import addresses, submission

    head = addresses.dashboard(address)
    with bar(talk_beside(as_json=True), f"ask {head.shown}"):
        found = submission.status(job, head)
    console.print(found)


def logs(job: JobNumber, address: Head = None) -> None:
    """Print a submitted job's output, and follow it until the job ends.

    Example: nas logs raysubmit_1234 --address http://HEAD:8265
    """
    from nas.cluster import addresses

    _end_with(_followed(job, addresses.dashboard(address)), job)


def stop(job: JobNumber, address: Head = None) -> None:
    """Stop a submitted job. It resumes when you submit it again.

    Example: nas stop raysubmit_1234 --address http://HEAD:8265
    """
    from nas.cluster import addresses, submission

    head = addresses.dashboard(address)
    with bar(talk_beside(as_json=True), f"stop {job}"):
        ended = submission.stop(job, head)
    console.print(ended)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _followed(job: str, head: "Address") -> str:
    """Write the job's output as it comes, and return its final state. The bar before its first line goes to stderr."""
    from nas.cluster import submission

    with ExitStack() as waiting:
        waiting.enter_context(bar(talk_beside(as_json=True), f"job {job}", doing="waiting for its first line"))

        def write(output: str) -> None:
            if output:
                waiting.close()
                sys.stdout.write(output)

        return submission.follow(job, head, write)


def _end_with(state: str, job: str) -> None:
    if state != "SUCCEEDED":
        raise JobFailedError(f"job {job} ended as {state}; its output above says why")
