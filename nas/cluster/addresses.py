"""Where a Ray cluster is: who names its address, how it is written, and whether anyone answers there.

A flag or a job's key beats a variable, a variable beats the default. Ray does it the other way round, so its variables
are set aside while it connects. Asks through plain sockets, within seconds, what takes Ray minutes to give up on; does
not import Ray.
"""

import json
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from nas.errors import AddressError, NoClusterError

_ANSWER_S = 5.0
"""How long a cluster may take to answer at all."""
_DASHBOARD_PORT = 8265
_THE_DASHBOARD = "the address of the head's dashboard, like http://HEAD:8265"
_THE_CLUSTER = "auto, local, or the head's HOST:PORT, like HEAD:6379"


@dataclass(frozen=True)
class Address:
    """An address as it was written, and who named it: a flag, a job's key, a variable, or nobody."""

    text: str
    named_by: str

    def __str__(self) -> str:
        return f"{self.shown or repr('')} ({self.named_by})"

    @property
    def shown(self) -> str:
        """Without the name and password a URL may hold."""
        return re.sub(r"//[^/@]*@", "//", self.text)


def named(given: str | None, giver: str, variables: tuple[str, ...], default: str) -> Address:
    """The given address, else the first of the variables that is set, else the default."""
    if given is not None:
        return Address(given.strip(), giver)
    for variable in variables:
        if text := os.environ.get(variable, "").strip():
            return Address(text, f"from ${variable}")
    return Address(default, "the default")


@contextmanager
def set_aside(*variables: str) -> Iterator[None]:
    """Leave out these environment variables inside the `with`: Ray prefers them to its arguments."""
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def show_token() -> None:
    """Have Ray send the token in its usual file, which it reads when it is first imported. A head asks for a token
    unless told not to; one that does not ask ignores it."""
    if "ray" not in sys.modules and Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def dashboard(flag: str | None) -> Address:
    """The dashboard that jobs are handed to, as an http URL without a slash at its end.

    `--address`, $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS (the order of Ray's own commands), else this machine's. Raises
    AddressError.
    """
    address = named(flag, "--address", ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"), f"http://127.0.0.1:{_DASHBOARD_PORT}")
    if address.named_by == "from $RAY_ADDRESS" and address.text in ("auto", "local"):
        address = Address(f"http://127.0.0.1:{_DASHBOARD_PORT}", "the default")
    scheme, _, rest = address.text.rpartition("://")
    try:
        url = urlsplit(f"{scheme or 'http'}://{rest}")
        host, port = url.hostname, url.port
    except ValueError as error:  # a port that is no number
        raise AddressError(f"{address} is not an address: {error}; give {_THE_DASHBOARD}") from error
    if scheme == "ray":
        raise AddressError(f"{address} is an address of Ray Client, which runs no jobs; give {_THE_DASHBOARD}")
    if scheme not in ("", "http", "https") or not host or re.search(r"\s", host) or address.text == "auto":
        raise AddressError(f"{address} is not a dashboard; give {_THE_DASHBOARD}")
    # A browser's address bar holds a page of the dashboard behind #.
    place = url.netloc if scheme or port else f"{url.netloc}:{_DASHBOARD_PORT}"
    return Address(f"{url.scheme}://{place}{url.path.rstrip('/')}", address.named_by)


def ray_version_at(head: Address) -> str | None:
    """The version of Ray that a dashboard says it is; None where it says so only to those who show a token.

    Raises NoClusterError where nothing answers, or something that is no Ray head.
    """
    try:
        with urllib.request.urlopen(f"{head.text}/api/version", timeout=_ANSWER_S) as answer:
            said = json.loads(answer.read(4096))
        return str(said["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return None
        found = f"it answers {error.code} to a request that every Ray head can answer"
    except (KeyError, TypeError, ValueError):  # not JSON, or not this one
        found = "its answer is not that of a Ray head"
    except HTTPException:
        port = urlsplit(head.text).port
        found = "it does not speak HTTP" + (f"; {port} may be the port where nodes join" if port else "")
    except OSError as error:  # nothing listens, no such host, no answer in time, a certificate that is not trusted
        reason = getattr(error, "reason", error)
        raise NoClusterError(f"no Ray head answers at {head}: {reason}; give {_THE_DASHBOARD}, or start it") from error
    raise NoClusterError(f"no Ray head is at {head}: {found}; give {_THE_DASHBOARD}")


def cluster(key: str | None) -> Address:
    """The Ray that a search's own process works with: `ray.address` of its job, $RAY_ADDRESS, else a Ray of its own.

    Raises AddressError.
    """
    address = named(key, "ray.address of the job", ("RAY_ADDRESS",), "local")
    scheme, _, rest = address.text.rpartition("://")
    if scheme in ("http", "https"):
        raise AddressError(
            f"{address} is a dashboard, where jobs are handed in (nas submit); to work with that cluster "
            f"from here, give {_THE_CLUSTER}"
        )
    if address.text not in ("auto", "local") and (scheme not in ("", "ray") or _host_and_port(rest) is None):
        raise AddressError(f"{address} is not an address of a Ray cluster; give {_THE_CLUSTER}")
    return address


def ask_for_cluster(address: Address) -> None:
    """Check that a cluster answers at HOST:PORT or ray://HOST:PORT. Raises NoClusterError where none does."""
    place = _host_and_port(address.text.rpartition("://")[2])
    if place is None:  # auto, local: Ray looks for it here
        return
    remedy = f"start that cluster, or give {_THE_CLUSTER}"
    if "$" in address.named_by:
        remedy += "; unset the variable to work with a Ray of your own"
    try:
        with socket.create_connection(place, timeout=_ANSWER_S) as connection:
            speaks = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_grpc(connection)
    except OSError as error:
        raise NoClusterError(f"no cluster answers at {address}: {error.strerror or error}; {remedy}") from error
    if not speaks:
        raise NoClusterError(f"something answers at {address}, but not as a Ray cluster does; {remedy}")


def _host_and_port(text: str) -> tuple[str, int] | None:
    try:
        url = urlsplit(f"ray://{text}")
        return (url.hostname, url.port) if url.hostname and url.port and not url.path.strip("/") else None
    except ValueError:
        return None


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other side begins with a SETTINGS frame, as every HTTP/2 server, and so every one of gRPC's, must."""
    empty_settings = b"\0\0\0\x04\0\0\0\0\0"
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    frame = b""
    while len(frame) < 4:
        if not (more := connection.recv(9)):
            return False
        frame += more
    return frame[3] == 4
