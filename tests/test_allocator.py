"""Freed memory that glibc would keep goes back to the system."""

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import ctypes, sys
from contextlib import nullcontext
from pathlib import Path
from blocklib.allocator import give_back, returned_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

bytearray(16 << 20)  # From now on glibc keeps blocks of this size.
before = held()
with returned_memory() if sys.argv[1] == "at once" else nullcontext():
    large, small = [], []
    for _ in range(20):
        large.append(bytearray(15 << 20))
        small.append(ctypes.create_string_buffer(4096))  # It lies behind, and pins what is before it.
    del large
    kept = held() - before
give_back()
print(kept, held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is asked to")
def test_gaps_between_what_is_in_use_are_returned() -> None:
    def kept(how: str) -> list[int]:
        command = [sys.executable, "-c", _SCRIPT, how]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        return [int(mebibytes) for mebibytes in done.stdout.split()]

    in_the_end, after = kept("in the end")
    if in_the_end < 200:
        pytest.skip("this C library returns what is freed by itself")
    assert after < 30
    assert max(kept("at once")) < 30
