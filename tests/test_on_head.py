"""The checks of a submitted job on a head, under Pythons that have all of it, and none."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nas.cluster import on_head

_VERSIONS = {name: metadata.version(name) for name in ("puzzle-nas", "ray")}


def _run(folder: Path, python: str = sys.executable, **asked: Any) -> "subprocess.CompletedProcess[str]":
    whole = {"versions": _VERSIONS, "home": str(folder / "home"), "beacon": None, "files": [], "db": None}
    (folder / on_head.ASKED).write_text(json.dumps(whole | asked))
    shutil.copy(on_head.__file__, folder)
    done = subprocess.run([python, "on_head.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert not (folder / on_head.ASKED).exists(), "it may hold a password"
    return done


def _faults(done: "subprocess.CompletedProcess[str]") -> list[str]:
    assert (done.returncode, done.stderr) == (1, "")
    assert all(line.startswith(on_head.FAULT) for line in done.stdout.splitlines())
    return [line.removeprefix(on_head.FAULT) for line in done.stdout.splitlines()]


def test_where_all_is_there_it_becomes_the_search(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("nothing: 1\n")
    done = _run(tmp_path, db=str(tmp_path / "x/nas.db"))
    assert done.stdout.startswith(
        f"{on_head.READY}puzzle-nas {_VERSIONS['puzzle-nas']}, ray {_VERSIONS['ray']}, {sys.executable}"
    )
    assert "error: job.yaml: " in done.stderr
    assert done.returncode == 1


def test_a_python_without_the_package_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    bare = getattr(sys, "_base_executable", sys.executable)
    code = "import importlib.metadata as m; m.version('puzzle-nas')"
    if subprocess.run([bare, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0:
        pytest.skip("the package is installed in the Python that others are made from")
    (fault,) = _faults(_run(tmp_path, bare))
    version = _VERSIONS["puzzle-nas"]
    assert fault.endswith(f" has no puzzle-nas; install puzzle-nas {version} there and on every node")


def test_another_version_is_told_with_both(tmp_path: Path) -> None:
    (fault,) = _faults(_run(tmp_path, versions=_VERSIONS | {"ray": "1.0"}))
    assert f" has ray {_VERSIONS['ray']}, and the job is from 1.0" in fault


def test_all_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    faults = _faults(
        _run(
            tmp_path,
            home=str(tmp_path / "file/home"),
            files=[str(tmp_path / "file"), str(tmp_path / "a.txt"), str(tmp_path / "b.txt")],
            db="postgresql://me:secret@127.0.0.1:1/nas",
        )
    )
    assert [fault.partition(" ")[0] for fault in faults] == [str(tmp_path / "a.txt"), "home:", "the"]
    assert "and 1 more files of the job cannot be read there" in faults[0]
    assert "cannot be written there (Not a directory)" in faults[1]
    assert "server 127.0.0.1:1 cannot be reached from there" in faults[2]
    assert "secret" not in "".join(faults)


def test_another_folder_of_that_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    assert "is not the folder of that name" in _run(tmp_path, beacon=".submitted-1").stdout
    (tmp_path / "home/.submitted-1").touch()
    assert "is not the folder of that name" not in _run(tmp_path, beacon=".submitted-1").stdout
