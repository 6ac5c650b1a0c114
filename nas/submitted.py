"""Searches that run on a Ray cluster: submitted, followed, stopped."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.terminal.console import Progress, console_of
from nas.terminal.progress import bar

if TYPE_CHECKING:
    from nas.cluster.addresses import Address
    from nas.job.request import Request


@dataclass(frozen=True)
class SubmittedJob:
    """A job of a Ray cluster, by its number.

    `address`: the head's dashboard; None: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else http://127.0.0.1:8265. Methods
    raise `nas.errors.NoClusterError` where no head answers, and `nas.errors.HeadError` where it knows no such job.
    """

    number: str
    address: str | None = None

    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, with Ray's own words where it has any."""
        from nas.cluster import submission

        return submission.status(self.number, self.head)

    def follow(self, write: Callable[[str], Any] | None = None) -> str:
        """Hand the job's output to `write` as it comes, until the job ends; returns how it ended.

        `write` gets pieces of text, not lines; None: standard output.
        """
        from nas.cluster import submission

        return submission.follow(self.number, self.head, write or _written_at_once)

    def stop(self) -> str:
        """Stop the job and wait until it has ended; returns how it ended. It resumes when it is submitted again."""
        from nas.cluster import submission

        return submission.stop(self.number, self.head)

    @property
    def head(self) -> "Address":
        """The address, and who named it."""
        from nas.cluster import addresses

        return addresses.dashboard(self.address)


def _written_at_once(output: str) -> None:
    sys.stdout.write(output)
    sys.stdout.flush()


def submit(
    job: "str | Path | Request", *, address: str | None = None, db: str | None = None, progress: Progress = True
) -> SubmittedJob:
    """Submit a search to a Ray cluster through its Jobs API, and wait until its head has found all that the job needs.

    `address`: as of `SubmittedJob`. `db`: as of `nas.run`, on the head. Raises `nas.errors.JobError` for a job that is
    wrong, and as `SubmittedJob`.
    """
    from nas.cluster import addresses, submission
    from nas.job import config
    from nas.stages.preflight import check_submitted

    request, head = config.load(job) if isinstance(job, str | Path) else job, addresses.dashboard(address)
    check_submitted(request)
    console = console_of(progress)
    with bar(console, f"submit {request.name} to {head.shown}"):
        number = submission.submit(request, head, db, lambda line: console.print(line, soft_wrap=True))
    return SubmittedJob(number, address)
