"""Bars and lines: how far a stage is, in what a person counts in; when lines come where no terminal is."""

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nas.terminal.progress import Bar, bar


class Clock:
    """Seconds, as the test sets them."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def piped() -> Console:
    return Console(file=StringIO(), width=40, markup=False)


def lines(console: Console) -> list[str]:
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue().splitlines()


def test_tasks_that_each_read_all_tokens_together_read_them_once() -> None:
    """Two workers take half of the options each, and each of them reads the whole text: it is 32,768 tokens long."""
    clock = Clock()
    shown = Bar(piped(), "distil blocks", "tokens", 32768, "starting workers", clock=clock)
    heard = shown.expect([32768 / 2, 32768 / 2])
    assert shown.said() == "starting workers"
    heard(0, 0, 0, "loading the parent")
    assert shown.said() == "loading the parent"
    heard(0, 8192, 32768)
    assert shown.said() == "4,096 of 32,768 tokens"
    heard(1, 16384, 32768)
    assert shown.said() == "12,288 of 32,768 tokens"
    heard(0, 32768, 32768)
    heard(1, 32768, 32768)
    assert shown.said() == "32,768 of 32,768 tokens"


def test_a_task_reports_in_units_of_its_own_and_is_counted_in_the_stages() -> None:
    """Groups of 3 and 5 models; how far one is, it says in tokens. Further groups join."""
    shown = Bar(piped(), "refine", "models", 100, clock=Clock())
    first = shown.expect([3, 5])
    first(1, 512, 1024)
    assert shown.said() == "2 of 100 models"
    first(0, 1024, 1024)
    first(1, 1024, 1024)
    second = shown.expect([8])
    second(0, 256, 1024)
    assert shown.said() == "10 of 100 models"


def test_a_stage_without_units_of_its_own_to_do() -> None:
    """Options that are not trained: first weights are all there is."""
    shown = Bar(piped(), "distil blocks", "tokens", None, "starting workers", clock=Clock())
    shown.expect([0.0, 0.0])(1, 0, 0, "first weights of 1 of 15 subblocks")
    assert shown.said() == "first weights of 1 of 15 subblocks"


def test_a_whole_that_only_the_task_knows() -> None:
    shown = Bar(piped(), "measure costs", "stacks", doing="starting workers", clock=Clock())
    shown(0, 0, 0, "the parent and its parts")
    assert shown.said() == "the parent and its parts"
    shown(0, 3, 14)
    assert shown.said() == "3 of 14 stacks"
    shown(0, 0, 0, "the last of them")
    assert shown.said() == "3 of 14 stacks, the last of them"


def test_two_tasks_do_not_take_turns_at_saying_what_they_do() -> None:
    """It would flicker. The one that is the least far does; a third begins where one has ended."""
    shown = Bar(piped(), "distil blocks", "tokens", 300, "starting workers", clock=Clock())
    heard = shown.expect([100, 100, 100])
    heard(0, 0, 0, "first weights of 2 of 15 subblocks")
    heard(1, 0, 0, "first weights of 1 of 15 subblocks")
    assert shown.said() == "first weights of 2 of 15 subblocks"
    heard(0, 50, 100)
    assert shown.said() == "50 of 300 tokens, first weights of 1 of 15 subblocks"
    heard(1, 100, 100)
    heard(0, 100, 100)
    heard(2, 0, 0, "loading the parent")
    assert shown.said() == "200 of 300 tokens, loading the parent"
    shown.say("choosing")
    assert shown.said() == "200 of 300 tokens, choosing"


def test_time_left_is_at_the_speed_since_something_was_done() -> None:
    """Starting and loading, which come before, say nothing of it; nor does the first report by itself."""
    clock = Clock()
    shown = Bar(piped(), "distil blocks", "tokens", 65536, "starting workers", clock=clock)
    heard = shown.expect([65536])
    clock.pass_s(30)
    heard(0, 4096, 65536)
    assert shown.said() == "4,096 of 65,536 tokens, 0:30 elapsed"
    clock.pass_s(10)
    heard(0, 12288, 65536)
    assert shown.said() == "12,288 of 65,536 tokens, 0:40 elapsed, about 1:05 left"
    clock.pass_s(3600)
    heard(0, 65536, 65536)
    assert shown.said() == "65,536 of 65,536 tokens, 1:00:40 elapsed"


def test_a_task_that_was_started_again_says_no_nonsense_of_the_time_left() -> None:
    clock = Clock()
    shown = Bar(piped(), "distil blocks", "tokens", clock=clock)
    shown(0, 500, 1000)
    clock.pass_s(10)
    shown(0, 100, 1000)
    assert shown.said() == "100 of 1,000 tokens, 0:10 elapsed"
    clock.pass_s(10)
    shown(0, 200, 1000)
    assert shown.said() == "200 of 1,000 tokens, 0:20 elapsed, about 1:20 left", "from where it began again"


def test_lines_come_after_a_second_and_then_within_ten() -> None:
    """Whether anything new was reported or not; never more often, however often it is."""
    clock, console = Clock(), piped()
    shown = Bar(console, "score options", "tokens", 4096, "starting workers", clock=clock)
    heard = shown.expect([4096])
    for _ in range(4):
        shown.tick()
        assert lines(console) == []
        clock.pass_s(0.25)
    shown.tick()
    assert lines(console) == ["score options: starting workers, 0:01 elapsed"]
    moments = []
    for second in range(1, 60):
        clock.pass_s(1)
        heard(0, 64 * second, 4096)
        before = len(lines(console))
        shown.tick()
        moments += [second] * (len(lines(console)) - before)
    gaps = [later - earlier for earlier, later in zip([0, *moments], moments, strict=False)]
    assert min(gaps) > 5
    assert max(gaps) < 10
    shown.end()
    assert lines(console)[-1] == "score options: done in 1:00"


def test_a_stage_that_ended_says_how_long_all_took() -> None:
    clock, console = Clock(), piped()
    shown = Bar(console, "score options", "tokens", 4096, clock=clock)
    for _ in range(2):
        clock.pass_s(66.5)
        shown.tick()
    shown.expect([4096])(0, 1024, 1024)
    shown.end()
    assert lines(console)[-1] == "score options: 4,096 tokens in 2:13"


def test_a_line_is_not_broken_where_it_is_long() -> None:
    clock, console = Clock(), piped()
    shown = Bar(console, "heal child", doing="evaluating the child before healing", clock=clock)
    clock.pass_s(2)
    shown.tick()
    assert lines(console) == ["heal child: evaluating the child before healing, 0:02 elapsed"]


# With a real clock: what comes, not when.


def test_what_is_done_at_once_leaves_no_line() -> None:
    console = piped()
    with bar(console, "front", "points") as shown:
        shown(0, 3, 3)
    assert lines(console) == []


def test_loading_is_told_of_before_it_begins() -> None:
    console = piped()
    with bar(console, "search tiny", doing="loading PyTorch", at_once=True):
        assert lines(console) == ["search tiny: loading PyTorch"]


def test_a_line_comes_though_nobody_reports() -> None:
    console = piped()
    with bar(console, "export and reload"):
        deadline = time.monotonic() + 60
        while not lines(console) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lines(console)[0].startswith("export and reload: 0:")


def test_an_error_ends_the_lines() -> None:
    console = piped()
    with pytest.raises(ValueError, match="mine"), bar(console, "solving", at_once=True):
        raise ValueError("mine")
    assert lines(console) == ["solving"]


def test_a_terminal_shows_a_bar() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with bar(console, "distil blocks", "tokens", 2048) as shown:
        shown.expect([2048])(0, 512, 1024)
    (told,) = [line for line in lines(console)[-2:] if "distil blocks" in line]
    assert "1,024 of 2,048 tokens" in told
    assert "━" in told


def test_what_is_not_known_in_numbers_leaves_nothing_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with bar(console, "solving") as shown:
        shown.say("no answer yet")
    assert "\x1b[2K" in lines(console)[-1], "the line is wiped"


def test_a_terminal_that_cannot_move_the_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with bar(console, "search tiny", doing="loading PyTorch", at_once=True):
        pass
    assert lines(console) == ["search tiny: loading PyTorch"]


LONG = """
import time
from rich.console import Console
from nas.terminal.progress import bar
with bar(Console(), "long work", at_once=True):
    time.sleep(600)
"""


def test_work_whose_lines_nobody_reads_any_more_is_interrupted() -> None:
    """`nas search job.yaml | head -1`"""
    house = Path(__file__).parents[1]
    running = subprocess.Popen(
        [sys.executable, "-c", LONG],
        cwd=house,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "long work\n"
    running.stdout.close()
    try:
        assert running.wait(timeout=120) != 0
    finally:
        running.kill()
