"""Folders for models that are timed: nothing of a process that was killed stays for ever."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cost_models.engines.scratch import scratch_folder

LEAVES_ONE = """
import os, signal
from cost_models.engines.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def old(folder: Path) -> Path:
    os.utime(folder, (0, 0))
    return folder


def test_a_folder_of_a_killed_process_goes_and_one_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", LEAVES_ONE], cwd=root, capture_output=True, text=True)
    left = old(Path(killed.stdout.strip()))
    assert left.is_dir()
    with scratch_folder() as used:
        assert not left.exists()
        old(used)
        with scratch_folder() as another:
            assert used.is_dir()
            assert another != used
    assert not used.exists()
