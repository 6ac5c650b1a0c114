"""Claim: no command keeps silent: it says within 2 s what it does, and while it works something every 10 s.

    python benchmarks/silence.py nas search job.yaml

Runs any command with its output piped, passes on what it says with the second of each line, and prints at the end when
the first line came, and the longest silence with the line before it. The last silence is the one before the end. Ends
as the command does.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from queue import Queue
from threading import Thread
from time import monotonic
from typing import IO


@dataclass(frozen=True)
class Heard:
    """A line, and the second it came at, counted from the command's start."""

    second: float
    line: str


@dataclass(frozen=True)
class Silence:
    """So many seconds without a line, and the line before it: empty where none had come yet."""

    seconds: float
    after: str


@dataclass(frozen=True)
class Listened:
    """Everything a command said on both its outputs, the seconds it took, and the status it ended with."""

    lines: tuple[Heard, ...]
    seconds: float
    status: int

    @property
    def first_s(self) -> float:
        """When the first line came; the end where none did."""
        return self.lines[0].second if self.lines else self.seconds

    @property
    def longest(self) -> Silence:
        moments = [Heard(0.0, ""), *self.lines, Heard(self.seconds, "")]
        silences = (Silence(later.second - before.second, before.line) for before, later in pairwise(moments))
        return max(silences, key=lambda silence: silence.seconds)


def listen(
    command: list[str],
    environment: dict[str, str] | None = None,
    show: bool = False,
    begun: Callable[[int], object] = lambda process: None,
) -> Listened:
    """Run a command to its end, nothing on its standard input, and hear what it writes as it comes. `begun` gets the
    number of its process."""
    started = monotonic()
    running = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    begun(running.pid)
    said: Queue[Heard | None] = Queue()

    def read(stream: IO[str]) -> None:
        for line in stream:
            said.put(Heard(monotonic() - started, line.rstrip("\n")))
        said.put(None)

    for stream in (running.stdout, running.stderr):
        assert stream is not None
        Thread(target=read, args=(stream,), daemon=True).start()
    lines: list[Heard] = []
    ended = 0
    try:
        while ended < 2:
            heard = said.get()
            if heard is None:
                ended += 1
                continue
            lines.append(heard)
            if show:
                print(f"{heard.second:7.1f} s  {heard.line}", flush=True)
        status = running.wait()
    finally:
        if running.poll() is None:
            running.terminate()
    return Listened(tuple(lines), monotonic() - started, status)


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    heard = listen(sys.argv[1:], show=True)
    longest = heard.longest
    print(f"\n{heard.seconds:.1f} s in all; the first line came after {heard.first_s:.1f} s")
    print(f"the longest silence took {longest.seconds:.1f} s, after: {longest.after or '(nothing yet)'}")
    raise SystemExit(heard.status)


if __name__ == "__main__":
    main()
