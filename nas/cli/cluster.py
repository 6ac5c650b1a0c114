"""The commands that submit a search to a Ray cluster and follow it. `nas/cli/main.py` registers them."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

import nas
from nas.cli.arguments import Db
from nas.errors import JobFailedError
from nas.terminal.console import console, talk_beside
from nas.terminal.progress import bar

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
    submitted = nas.submit(job, address=address, db=db, progress=console)
    if wait:
        _follow(submitted)


def status(job: JobNumber, address: Head = None) -> None:
    """Print the state of a submitted job.

    Example: nas status raysubmit_1234 --address http://HEAD:8265
    """
    submitted = nas.SubmittedJob(job, address)
    with bar(talk_beside(as_json=True), f"ask {submitted.head.shown}"):
        state = submitted.status()
    console.print(state)


def logs(job: JobNumber, address: Head = None) -> None:
    """Print a submitted job's output, and follow it until the job ends.

    Example: nas logs raysubmit_1234 --address http://HEAD:8265
    """
    _follow(nas.SubmittedJob(job, address))


def stop(job: JobNumber, address: Head = None) -> None:
    """Stop a submitted job. It resumes when you submit it again.

    Example: nas stop raysubmit_1234 --address http://HEAD:8265
    """
    submitted = nas.SubmittedJob(job, address)
    with bar(talk_beside(as_json=True), f"stop {job}"):
        state = submitted.stop()
    console.print(state)


def _follow(job: nas.SubmittedJob) -> None:
    """Write the job's output as it comes; the bar before its first line goes to stderr. Raises JobFailedError."""
    with ExitStack() as waiting:
        waiting.enter_context(bar(talk_beside(as_json=True), f"job {job.number}", doing="waiting for its first line"))

        def write(output: str) -> None:
            waiting.close()
            sys.stdout.write(output)
            sys.stdout.flush()

        state = job.follow(write)
    if state != "SUCCEEDED":
        raise JobFailedError(f"job {job.number} ended as {state}; its output above says why")
