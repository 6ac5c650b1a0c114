"""Who names a Ray cluster, how addresses are written, and what answers there: real sockets, and a real HTTP server."""

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nas.cluster import addresses
from nas.cluster.addresses import Address
from nas.cluster.ray_folder import ray_folder
from nas.cluster.tasks import Cluster
from nas.errors import AddressError, NoClusterError, SocketPathError

_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "TMPDIR")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listening() -> Iterator[Callable[[bytes], int]]:
    """A port where whatever comes is answered with the same bytes."""
    servers: list[socket.socket] = []

    def listen(answer: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        port: int = server.getsockname()[1]
        return port

    yield listen
    for server in servers:
        server.close()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[int]:
    """The port of an HTTP server that is no Ray head."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("http://head:8265/#/jobs", "http://head:8265"),
        ("https://head/ray/", "https://head/ray"),
        ("head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        (" 10.0.0.1:1234 ", "http://10.0.0.1:1234"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_a_dashboard_is_written_in_many_ways(written: str, url: str) -> None:
    assert addresses.dashboard(written) == Address(url, "--address")


@pytest.mark.parametrize(
    "written", ["", "auto", "ray://head:10001", "ftp://head", "http://", "head:port", "http://h:99999"]
)
def test_what_is_no_dashboard_is_refused_with_what_would_be(written: str) -> None:
    with pytest.raises(AddressError, match=r"\(--address\).*give .*http://HEAD:8265"):
        addresses.dashboard(written)


def test_a_flag_beats_both_variables_and_they_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Address("http://127.0.0.1:8265", "the default")
    assert addresses.dashboard(None) == default
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert addresses.dashboard(None) == default
    monkeypatch.setenv("RAY_ADDRESS", "http://third:1")
    assert addresses.dashboard(None) == Address("http://third:1", "from $RAY_ADDRESS")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "second:2")
    assert addresses.dashboard(None) == Address("http://second:2", "from $RAY_API_SERVER_ADDRESS")
    assert addresses.dashboard("first:3") == Address("http://first:3", "--address")


def test_a_key_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert addresses.cluster(None).text == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert addresses.cluster(None) == Address("head:6379", "from $RAY_ADDRESS")
    for key in ("auto", "local", "other:6379", "ray://other:10001"):
        assert addresses.cluster(key) == Address(key, "ray.address of the job")


@pytest.mark.parametrize("key", ["http://head:8265", "head", "anyscale://x", "head:0x10", "head:99999", ""])
def test_what_is_no_cluster_is_refused_with_what_would_be(key: str) -> None:
    with pytest.raises(AddressError, match=r"\(ray\.address of the job\).*HEAD:6379"):
        addresses.cluster(key)


def test_no_password_is_shown() -> None:
    assert str(addresses.dashboard("http://me:secret@head:8265")) == "http://head:8265 (--address)"


def test_variables_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with addresses.set_aside("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "head:6379"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_nobody_at_the_dashboard(listening: Callable[[bytes], int], website: int) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    for place, why in (
        (f"127.0.0.1:{port}", "Connection refused"),
        (f"127.0.0.1:{website}", "it answers 404"),
        (f"127.0.0.1:{listening(b'HTTP/1.0 200 OK')}", "not that of a Ray head|does not speak HTTP"),
        (f"127.0.0.1:{listening(b'HTTP/1.0 200 OK' + bytes([13, 10, 13, 10]) + b'[]')}", "not that of a Ray head"),
        (f"127.0.0.1:{listening(bytes(9))}", "does not speak HTTP"),
        ("no-such-host.invalid", "no Ray head answers"),
    ):
        with pytest.raises(NoClusterError, match=rf"(?s)(?=.*{place})(?=.*({why})).*\(--address\)"):
            addresses.ray_version_at(addresses.dashboard(place))


def test_nobody_in_the_cluster(
    listening: Callable[[bytes], int], website: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within seconds; a search then has written nothing yet."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(NoClusterError, match=r"^no cluster answers at 127\.0\.0\.1:1 \(from \$RAY_ADDRESS\): .*unset"):
        Cluster().places(1, 0)
    for port in (website, listening(b"")):
        key = f"127.0.0.1:{port}"
        with pytest.raises(NoClusterError, match=rf"^something answers at {key} \(ray\.address of the job\), but not"):
            Cluster(key).places(1, 0)


def test_a_long_tmpdir_gives_way_to_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """39 bytes leave Ray's longest socket the 107 that a path may have."""
    assert ray_folder() is None
    monkeypatch.setenv("TMPDIR", "/" + 38 * "x")
    assert ray_folder() is None
    monkeypatch.setenv("TMPDIR", "/" + 39 * "x")
    assert ray_folder() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/" + 13 * "\N{SNOWMAN}")  # 40 bytes
    assert ray_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/" + 102 * "x")
    with pytest.raises(
        SocketPathError, match=r"^\$RAY_TMPDIR is 103 bytes long, .* set RAY_TMPDIR to .* at most 39 bytes$"
    ):
        ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    assert ray_folder() is None
