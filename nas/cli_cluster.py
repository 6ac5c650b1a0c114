"""The commands that hand a search to a Ray cluster and follow it. `nas/cli.py` puts them beside the others."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from nas.arguments import Db
from nas.printed import console, talk_beside
from nas.progress import bar

Address = Annotated[str, typer.Option("--address", help="The Ray head's dashboard.", envvar="RAY_API_SERVER_ADDRESS")]
JobNumber = Annotated[str, typer.Argument(help="What `nas submit` printed.")]
_HEAD = "http://127.0.0.1:8265"


def submit(
    job: Annotated[Path, typer.Argument(help="The job file. Its paths, and home, must be seen from the cluster.")],
    address: Address = _HEAD,
    db: Db = None,
    wait: Annotated[bool, typer.Option(help="Follow the logs until the job ends.")] = True,
) -> None:
    """Submit a search to a Ray cluster through its Jobs API.

    Example: nas submit job.yaml --address http://HEAD:8265
    """
    from nas import config, submission
    from nas.preflight import check_submitted

    request = config.load(job)
    check_submitted(request)
    with bar(console, f"submit {request.name} to {address}"):
        number = submission.submit(request, address, db)
    console.print(f"submitted {number}; follow it with: nas logs {number} --address {address}")
    if wait:
        _end_with(_followed(number, address), number)


def status(job: JobNumber, address: Address = _HEAD) -> None:
    """How a submitted job stands.

    Example: nas status raysubmit_1234 --address http://HEAD:8265
    """
    from nas import submission

    with bar(console, f"ask {address}"):
        found = submission.status(job, address)
    console.print(found)


def logs(job: JobNumber, address: Address = _HEAD) -> None:
    """Print a submitted job's output, and follow it until the job ends.

    Example: nas logs raysubmit_1234 --address http://HEAD:8265
    """

    _end_with(_followed(job, address), job)


def stop(job: JobNumber, address: Address = _HEAD) -> None:
    """Stop a submitted job. Submitted again, it goes on where it stopped.

    Example: nas stop raysubmit_1234 --address http://HEAD:8265
    """
    from nas import submission

    with bar(console, f"stop {job}"):
        ended = submission.stop(job, address)
    console.print(ended)


def _followed(job: str, address: str) -> str:
    """How the job ended, its output written as it came: what is said before its first line is no part of it."""
    from nas import submission

    with ExitStack() as waiting:
        waiting.enter_context(bar(talk_beside(as_json=True), f"job {job}", doing="waiting for its first line"))

        def write(output: str) -> None:
            if output:
                waiting.close()
                sys.stdout.write(output)

        return submission.follow(job, address, write)


def _end_with(state: str, job: str) -> None:
    if state != "SUCCEEDED":
        raise ValueError(f"job {job} ended as {state}")
