"""Searches as jobs of a Ray cluster, through Ray's Jobs API: submit, status, logs, stop.

A job runs `nas search` on the head against the cluster it is in: the same code as on one machine, under the Python that
the head itself runs under. The request travels as a job file with every path absolute, since a job runs in a folder of
its own; files and `home` must be seen from all nodes. Its results are in the database, not in Ray: a head forgets its
jobs when it ends. `on_head.py` looks on the head whether all is there, and `submit` waits for its word.
"""

import json
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from blocklib.gguf_header import is_gguf
from db.connect import locate, sqlite_file
from nas.cluster import on_head
from nas.cluster.addresses import Address, ray_version_at, set_aside, show_token
from nas.errors import HeadError, NoClusterError
from nas.job.data import HubDataset
from nas.job.request import EMBEDDED, Request

_POLL_S = 1.0
_ANSWER_S = 60.0
"""How long a head that is there may take for one answer."""
_READY_S = 120.0
"""How long a head may take to start a job before no more is waited for its word."""
_NODES_S = 20.0
"""How long a head may take to say what runs on it."""
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_VERSIONS = ("puzzle-nas", "ray")


def submit(request: Request, head: Address, db: str | None, say: Callable[[str], Any]) -> str:
    """Submit a search; returns the job's number once the head has found all there that it needs, or has not begun
    within `_READY_S`.

    Raises NoClusterError where no head answers, and HeadError where it takes no jobs, is of another version, or lacks
    something of the job's; in the last case the cluster lists the job as failed.
    """
    there, here = ray_version_at(head), metadata.version("ray")
    if there not in (None, here):
        raise HeadError(f"the head at {head} runs Ray {there}, but Ray {here} is here; install the same on both sides")
    client = _client(head)
    if request.ray.address is not None:
        say(f"ray.address: {request.ray.address} is ignored: a submitted search runs on the cluster of that head")
        request = request.model_copy(update={"ray": request.ray.model_copy(update={"address": None})})
    beacon = _beacon(request.home)
    try:
        number = _handed_over(client, request, _asked(request, db, beacon))
    except BaseException:
        _remove(request.home, beacon)
        raise
    say(f"submitted {number}; follow it with: nas logs {number} --address {head.shown}")
    try:
        has_begun = _has_begun(client, number, head, say)
    except HeadError:
        _remove(request.home, beacon)
        raise
    # One that begins later looks for it, and removes it.
    if has_begun:
        _remove(request.home, beacon)
    return number


def _handed_over(client: Any, request: Request, asked: dict[str, Any]) -> str:
    """The number of the job that runs `on_head.py` beside the job's file."""
    with tempfile.TemporaryDirectory() as folder:
        job = yaml.safe_dump(request.canonical(), sort_keys=False)
        Path(folder, "job.yaml").write_text(job, encoding="utf-8")
        Path(folder, on_head.ASKED).write_text(json.dumps(asked), encoding="utf-8")
        shutil.copy(on_head.__file__, Path(folder, "on_head.py"))
        number: str = client.submit_job(
            entrypoint=f"exec {shlex.quote(_python_of(client))} on_head.py",
            runtime_env={"working_dir": folder},
            metadata={"name": request.name},
        )
    return number


def status(job: str, head: Address) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, with Ray's own words where it has any."""
    info = _known(_reached(head), job)
    return f"{info.status.value}: {info.message}" if info.message else str(info.status.value)


def follow(job: str, head: Address, write: Callable[[str], Any]) -> str:
    """Write the job's output as it comes, until it ends; returns how it ended."""
    client, printed = _reached(head), 0
    while True:
        state = str(_known(client, job).status.value)
        output = client.get_job_logs(job)
        if len(output) > printed:
            write(output[printed:])
        printed = len(output)
        if state in _ENDED:
            return state
        time.sleep(_POLL_S)


def stop(job: str, head: Address) -> str:
    """Ask the job to stop and wait until it has; returns how it ended."""
    client = _reached(head)
    _known(client, job)
    client.stop_job(job)
    while (state := str(_known(client, job).status.value)) not in _ENDED:
        time.sleep(_POLL_S)
    return state


def _asked(request: Request, db: str | None, beacon: str | None) -> dict[str, Any]:
    """The questions for the head. The database travels here, not in the command or its variables, which the dashboard
    shows to everyone: its URL may hold a password."""
    in_folder = "" if is_gguf(request.parent) else "/config.json"
    files: list[Path | str] = [] if request.parent == EMBEDDED else [f"{request.parent}{in_folder}"]
    for source in (request.data.train, request.data.evaluation):
        if isinstance(source, tuple):
            files += source
        elif isinstance(source, HubDataset):
            files.append(source.dataset)
    return {
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "home": str(request.home),
        "beacon": beacon,
        "files": [str(file) for file in files if os.path.isabs(file)],
        "db": _database(db),
    }


def _database(db: str | None) -> str | None:
    """The database as named here, the flag before the variables; None: the head's own default."""
    if not (db or os.environ.get("NAS_DB") or os.environ.get("NAS_HOME")):
        return None
    url = locate(db).render_as_string(hide_password=False)
    file = sqlite_file(url)
    return url if file is None else str(file.resolve())


def _beacon(home: Path) -> str | None:
    """The name of a new file in `home` by which the head knows the folder again; None where there is no home here."""
    file = home / f".submitted-{uuid4().hex}"
    try:
        file.touch()
    except OSError:
        return None
    return file.name


def _remove(home: Path, beacon: str | None) -> None:
    if beacon is not None:
        (home / beacon).unlink(missing_ok=True)


def _python_of(client: Any) -> str:
    """The Python that a head's workers run under. Its node tells, some seconds after it has started."""
    deadline = time.monotonic() + _NODES_S
    while time.monotonic() < deadline:
        nodes = client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
        heads = [node for node in nodes if node["raylet"].get("isHeadNode")]
        for argument in (argument for node in heads for argument in node.get("cmdline") or ()):
            name, _, line = argument.partition("=")
            if name == "--python_worker_command" and line:
                return shlex.split(line)[0]
        time.sleep(_POLL_S)
    return "python3"  # Whichever that is, it says what it lacks.


def _has_begun(client: Any, number: str, head: Address, say: Callable[[str], Any]) -> bool:
    """Whether the job begins within `_READY_S`. Raises HeadError where it ends at once."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        info = _known(client, number)
        output = client.get_job_logs(number)
        if on_head.READY in output:
            return True
        if info.status.value in _ENDED:
            faults = [line.partition(on_head.FAULT)[2] for line in output.splitlines() if on_head.FAULT in line]
            said = faults or (output.strip() or info.message or "the job ended at once").splitlines()[-1:]
            raise HeadError("\n".join(f"the head at {head}: {fault}" for fault in said))
        time.sleep(_POLL_S)
    say(f"the head at {head} has not started the job after {_READY_S:.0f} s")
    return False


def _known(client: Any, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except HeadError as error:
        if error.status != 404:
            raise
        raise HeadError(
            f"the cluster knows no job {job}; a head forgets its jobs when it restarts", error.status
        ) from error


def _reached(head: Address) -> Any:
    """A client of a head that answers. Raises NoClusterError where none does."""
    ray_version_at(head)
    return _client(head)


def _client(head: Address) -> Any:
    """A client of the Jobs API that waits for no answer for ever, and says in a line what is wrong."""
    show_token()
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(chatty).addFilter(lambda record: record.levelno >= logging.WARNING)
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *request: Any, **options: Any) -> Any:
            try:
                return super()._do_request(*request, **{"timeout": _ANSWER_S} | options)
            except requests.exceptions.RequestException as error:
                why = "no answer in time" if isinstance(error, requests.exceptions.Timeout) else "the connection failed"
                raise NoClusterError(f"the head at {head} does not answer: {why}; check that it is running") from error
            except AuthenticationError as error:
                raise HeadError(
                    f"the head at {head} asks for its token; put it in ~/.ray/auth_token, or give it as RAY_AUTH_TOKEN "
                    "with RAY_AUTH_MODE=token"
                ) from error

        def _raise_error(self, answer: Any) -> None:
            if "No available agent" in answer.text:
                raise HeadError(
                    f"the head at {head} takes no jobs: it has no agent. Another program, or another Ray, may have its "
                    "port: start the head with --dashboard-agent-listen-port=FREE"
                )
            said = answer.text.strip().splitlines()[-1:] or [""]
            raise HeadError(f"the head at {head} answers {answer.status_code}: {said[0]}", answer.status_code)

    with set_aside("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        try:
            return Client(head.text)
        except RuntimeError as error:
            raise HeadError(f"the head at {head} offers no jobs: {error}") from error
