"""The commands that hand a search to a Ray cluster and follow it. `nas/cli.py` puts them beside the others."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nas.arguments import Db
from nas.printed import console

_ADDRESS_HELP = "The Ray head's dashboard. Default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else http://127.0.0.1:8265."
Head = Annotated[str | None, typer.Option("--address", help=_ADDRESS_HELP)]
JobNumber = Annotated[str, typer.Argument(help="What `nas submit` printed.")]


def submit(
    job: Annotated[Path, typer.Argument(help="The job file. Its paths, and home, must be seen from the cluster.")],
    address: Head = None,
    db: Db = None,
    wait: Annotated[bool, typer.Option(help="Follow the logs until the job ends.")] = True,
) -> None:
    """Submit a search to a Ray cluster through its Jobs API.

    Example: nas submit job.yaml --address http://HEAD:8265
    """
    from nas import addresses, config, submission

    request, head = config.load(job), addresses.dashboard(address)
    number = submission.submit(request, head, db, _say)
    if wait:
        _end_with(submission.follow(number, head, sys.stdout.write), number)


def status(job: JobNumber, address: Head = None) -> None:
    """How a submitted job stands.

    Example: nas status raysubmit_1234 --address http://HEAD:8265
    """
    from nas import addresses, submission

    console.print(submission.status(job, addresses.dashboard(address)))


def logs(job: JobNumber, address: Head = None) -> None:
    """Print a submitted job's output, and follow it until the job ends.

    Example: nas logs raysubmit_1234 --address http://HEAD:8265
    """
    from nas import addresses, submission

    _end_with(submission.follow(job, addresses.dashboard(address), sys.stdout.write), job)


def stop(job: JobNumber, address: Head = None) -> None:
    """Stop a submitted job. Submitted again, it goes on where it stopped.

    Example: nas stop raysubmit_1234 --address http://HEAD:8265
    """
    from nas import addresses, submission

    console.print(submission.stop(job, addresses.dashboard(address)))


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _end_with(state: str, job: str) -> None:
    if state != "SUCCEEDED":
        raise ValueError(f"job {job} ended as {state}")
