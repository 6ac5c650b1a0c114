"""Searches as jobs of a Ray cluster, through Ray's Jobs API: submit, status, logs, stop.

A job runs `nas search` on the head against the cluster it is in: the same code as on one machine. The request travels
as a job file with every path absolute, since a job runs in a folder of its own; files and `home` must be seen from
all nodes. What it finds is in the database, not in Ray: a head forgets its jobs when it ends.
"""

import os
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from nas.request import Request

_POLL_S = 1.0
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# Settings of the submitter's that a job should share.
_PASSED_ON = ("NAS_DB", "NAS_HOME")


def submit(request: Request, address: str, db: str | None) -> str:
    """Submit a search; returns the job's number. Raises ConnectionError where no head answers at `address`."""
    client = _client(address)
    entrypoint = "python -m nas.cli search job.yaml" + (f" --db {shlex.quote(_absolute(db))}" if db else "")
    environment = {name: _absolute(os.environ[name]) for name in _PASSED_ON if name in os.environ}
    with tempfile.TemporaryDirectory() as folder:
        job = yaml.safe_dump(request.canonical(), sort_keys=False)
        Path(folder, "job.yaml").write_text(job, encoding="utf-8")
        number: str = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": folder, "env_vars": environment},
            metadata={"name": request.name},
        )
    return number


def status(job: str, address: str) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, with Ray's own words where it has any."""
    info = _known(_client(address), job)
    return f"{info.status.value}: {info.message}" if info.message else str(info.status.value)


def follow(job: str, address: str, write: Callable[[str], Any]) -> str:
    """Write the job's output as it comes, until it ends; returns how it ended."""
    client, printed = _client(address), 0
    while True:
        state = str(_known(client, job).status.value)
        output = client.get_job_logs(job)
        write(output[printed:])
        printed = len(output)
        if state in _ENDED:
            return state
        time.sleep(_POLL_S)


def stop(job: str, address: str) -> str:
    """Ask the job to stop and wait until it has; returns how it ended."""
    client = _client(address)
    _known(client, job)
    client.stop_job(job)
    while (state := str(_known(client, job).status.value)) not in _ENDED:
        time.sleep(_POLL_S)
    return state


def _known(client: Any, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise ValueError(f"the cluster knows no job {job}; a head forgets its jobs when it is started anew") from error


def _client(address: str) -> Any:
    # A head may ask for the token that Ray keeps in this file; the client sends it only if told before Ray is imported.
    if Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray head answers at {address}: {error}") from error


def _absolute(place: str) -> str:
    """A file or folder, as the cluster's nodes must find it; a database's URL stays as it is."""
    return place if "://" in place else str(Path(place).expanduser().resolve())
