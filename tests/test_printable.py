"""Whatever names a user's files hold, the terminal is not steered by them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from searches import Here

from nas.terminal.console import Terminal, console, talk_beside
from nas.terminal.printable import printable

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m"


@given(st.text())
def test_nothing_steers_and_what_does_not_stays(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not set(shown) & set("\x7f\x9b\u202e\u2066\u2028")
    assert printable(shown) == shown
    shown.encode("utf-8")
    plain = "".join(c for c in text if c.isalnum() and c.isascii())
    assert [c for c in plain if c not in shown] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("a\rb\bc", r"a\rb\x08c"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("a\tb\nc", "a\tb\nc"),
        ("naïve 日本 👩‍👩‍👧 [bold]x[/bold] :smile:", "naïve 日本 👩‍👩‍👧 [bold]x[/bold] :smile:"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_tables_cells_titles_and_a_line_are_shown() -> None:
    terminal = Terminal()
    terminal.file = io.StringIO()
    terminal.width = 200
    table = Table(f"head {EVIL}", "right", title=EVIL)
    table.add_row(f"cell {EVIL}", "[red]x[/red]")
    terminal.print(table)
    terminal.print(f"line {EVIL}", soft_wrap=True, style="dim")
    printed = terminal.file.getvalue()
    assert "\x1b]" not in printed
    assert "\x9b" not in printed
    assert "\x07" not in printed
    assert printed.count(SHOWN) == 4
    assert "[red]x[/red]" in printed


def test_every_console_is_of_that_kind() -> None:
    assert all(isinstance(each, Terminal) for each in (console, talk_beside(True), talk_beside(False)))
    ours = Path(__file__).parents[1] / "nas"
    others = [path.name for path in ours.rglob("*.py") if "Console(" in path.read_text() and path.name != "printed.py"]
    assert others == []


def test_names_in_a_table_and_in_its_errors_are_shown(
    here: Here, mistake: Callable[[Any], str], tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    option = {"stats": {f"ms{EVIL}": 2.0}, "metrics": {"loss": 1.0}}
    table.write_text(json.dumps({f"layer {EVIL} {layer}": {f"option {EVIL}": option} for layer in range(2)}))
    done = here(tmp_path / "home", "solve", "--table", table, "--objective", "metrics.loss")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert SHOWN in said
    assert "\x1b]" not in said
    assert "\x07" not in said
    said = mistake(["solve", "--table", table, "--objective", f"metrics.{EVIL}"])
    assert "\x1b" not in said
    assert SHOWN in said
