"""Tables measured elsewhere, asked as a user asks: both shapes, against every choice there is, and every mistake."""

import json
import math
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from searches import Here, command, environment, nas

from nas.errors import TableError
from nas.tables.read import parse, parse_limits
from solvers.problem import Constraint

DOCS = Path(__file__).parents[1] / "docs/tables.md"
NUMBERS = {"stats": {"memory_mib": 4, "time": {"prefill_ms": 1.5}}, "metrics": {"kl_div": 0.25}}

Mistake = Callable[[Sequence[str | Path]], str]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(here: Here, tmp_path: Path) -> Ask:
    """`nas solve --table` on a table, with --json."""

    def run(table: object, *arguments: str) -> dict[str, Any]:
        done = here(tmp_path / "home", "solve", "--table", written(tmp_path, table), *arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def written(folder: Path, table: object) -> Path:
    path = folder / "table.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def library(seed: int, layers: int = 4, options: int = 4, scale: float = 1.0) -> dict[str, Any]:
    """A small one, its layers out of order; costs are whole, and scores far apart and not tied."""
    numbers = random.Random(seed)
    keys = [f"layer_{layer}" for layer in range(8, 8 + layers)]
    numbers.shuffle(keys)
    return {
        key: {
            f"ffn_{i}": {
                "stats": {"memory_mib": numbers.randint(0, 9), "time": {"prefill_ms": numbers.randint(0, 9)}},
                "metrics": {"kl_div": scale * numbers.random()},
            }
            for i in range(options)
        }
        for key in keys
    }


def choices(table: dict[str, Any]) -> Iterator[tuple[float, int, int]]:
    """Every choice there is: its objective, its memory and its time."""
    for chosen in product(*(options.values() for options in table.values())):
        yield (
            math.fsum(option["metrics"]["kl_div"] for option in chosen),
            sum(option["stats"]["memory_mib"] for option in chosen),
            sum(option["stats"]["time"]["prefill_ms"] for option in chosen),
        )


def spans() -> dict[str, Any]:
    def option(first: int, span: int, name: str, score: float, seconds: float, size: int) -> dict[str, Any]:
        return {
            "first": first,
            "span": span,
            "name": name,
            "score": score,
            "costs": {"latency_s": seconds, "size": size},
        }

    return {
        "slots": 3,
        "options": [
            option(0, 1, "kv8", 0.0, 0.004, 4), option(0, 1, "kv2", 0.5, 0.002, 1), option(1, 1, "ffn", 0.0, 0.004, 4),
            option(2, 1, "ffn", 0.0, 0.004, 4), option(1, 2, "fuse(ffn,ffn)", 0.2, 0.005, 8),
            option(0, 3, "skip", 3.0, 0.0, 0),
        ],
    }  # fmt: skip


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("maximise", [False, True])
def test_a_library_is_solved_as_trying_everything_does(ask: Ask, seed: int, maximise: bool) -> None:
    table = library(seed)
    budget = ("--budget", "stats.memory_mib=16", "--budget", "stats.time.prefill_ms<=20,stats.memory_mib>=6")
    within = [score for score, memory, time in choices(table) if 6 <= memory <= 16 and time <= 20]
    told = ask(table, "--objective", "metrics.kl_div", *budget, *["--maximise"] * maximise)
    assert told["total"] == pytest.approx((max if maximise else min)(within), rel=1e-9)
    assert told["status"] == "optimal"
    assert told["bound"] >= told["total"] if maximise else told["bound"] <= told["total"]
    assert told["bound"] == pytest.approx(told["total"], rel=1e-5)
    assert told["gap"] <= 1e-6
    assert [choice["layer"] for choice in told["choices"]] == ["layer_8", "layer_9", "layer_10", "layer_11"]
    assert [choice["slot"] for choice in told["choices"]] == [0, 1, 2, 3]
    chosen = [table[choice["layer"]][choice["option"]] for choice in told["choices"]]
    assert [choice["score"] for choice in told["choices"]] == [option["metrics"]["kl_div"] for option in chosen]
    assert told["costs"] == {
        "stats.memory_mib": sum(option["stats"]["memory_mib"] for option in chosen),
        "stats.time.prefill_ms": sum(option["stats"]["time"]["prefill_ms"] for option in chosen),
    }
    prices = [limit.pop("price") for limit in told["limits"]]
    assert min(prices) >= 0
    assert told["limits"] == [
        {"cost": "stats.memory_mib", "maximum": 16},
        {"cost": "stats.time.prefill_ms", "maximum": 20},
        {"cost": "stats.memory_mib", "minimum": 6},
    ]
    for call in told["close_calls"]:
        beyond = call["total"] - told["total"]
        assert call["worse"] == pytest.approx(-beyond if maximise else beyond, abs=1e-9)
        for choice in call["choices"]:
            assert choice["option"] != told["choices"][choice["slot"]]["option"]


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6])
def test_the_scale_of_the_scores_changes_nothing(ask: Ask, scale: float) -> None:
    line = ("--objective", "metrics.kl_div", "--budget", "stats.memory_mib=14")
    plain, scaled = ask(library(1), *line), ask(library(1, scale=scale), *line)
    assert [choice["option"] for choice in scaled["choices"]] == [choice["option"] for choice in plain["choices"]]
    assert scaled["total"] == pytest.approx(scale * plain["total"], rel=1e-9)
    assert scaled["status"] == "optimal"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["kv8", "ffn", "ffn"]),
        (("--budget", "latency_s=0.009"), ["kv8", "fuse(ffn,ffn)"]),
        (("--budget", "latency_s=0.009,size>=12"), ["kv8", "fuse(ffn,ffn)"]),
        (("--budget", "latency_s=0.007", "--budget", "size<=9"), ["kv2", "fuse(ffn,ffn)"]),
        (("--budget", "latency_s<=0.001"), ["skip"]),
        (("--objective", "size",), ["skip"]),
        (("--objective", "size", "--budget", "size>=10", "--budget", "latency_s=0.01"), ["kv8", "fuse(ffn,ffn)"]),
        (("--maximise",), ["skip"]),
    ],
)  # fmt: skip
def test_options_that_span_slots_tile_them(ask: Ask, arguments: tuple[str, ...], names: list[str]) -> None:
    table = spans()
    told = ask(table, *arguments)
    assert [choice["option"] for choice in told["choices"]] == names
    assert sum(choice["span"] for choice in told["choices"]) == 3
    assert "layer" not in told["choices"][0]
    named = {(option["first"], option["span"], option["name"]): option["costs"] for option in table["options"]}
    chosen = [named[choice["slot"], choice["span"], choice["option"]] for choice in told["choices"]]
    assert told["costs"] == {
        cost: pytest.approx(sum(each[cost] for each in chosen), abs=1e-12) for cost in ("latency_s", "size")
    }


def test_a_budget_on_the_command_line_takes_the_place_of_the_tables_own(ask: Ask) -> None:
    table = spans() | {"budget": {"latency_s": 0.009, "size": {"min": 11, "max": 13}}}
    own = ask(table)
    assert [choice["option"] for choice in own["choices"]] == ["kv8", "fuse(ffn,ffn)"]
    assert [(limit["cost"], limit.get("minimum"), limit.get("maximum")) for limit in own["limits"]] == [
        ("latency_s", None, 0.009),
        ("size", 11, None),
        ("size", None, 13),
    ]
    assert [choice["option"] for choice in ask(table, "--budget", "size<=1")["choices"]] == ["skip"]


@pytest.mark.parametrize("key", ["{}", "layer_{}", "block_{}", "model.layers.{}", "L{}"])
def test_layers_are_in_the_order_of_their_numbers(ask: Ask, key: str) -> None:
    numbers = [10, 2, 0, 1, *range(3, 10)]
    told = ask({key.format(number): {"one": NUMBERS} for number in numbers}, "--objective", "metrics.kl_div")
    assert [choice["layer"] for choice in told["choices"]] == [key.format(number) for number in range(11)]


def test_what_some_option_lacks_is_not_summed_and_a_missing_layer_is_noted(here: Here, tmp_path: Path) -> None:
    bare = {"stats": {"memory_mib": 1, "time": {"prefill_ms": None}}, "metrics": {"kl_div": 1}}
    path = written(tmp_path, {"1": {"a": NUMBERS}, "2": {"no_op": bare}, "5": {"a": NUMBERS}})
    done = here(tmp_path / "home", "solve", "--table", path, "--objective", "metrics.kl_div", "--json")
    assert json.loads(done.stdout)["costs"] == {"stats.memory_mib": 9}
    assert "note: the table has no layer 3..4; the sums are of the 3 layers it has" in done.stderr
    assert re.search(r'note: stats\.time\.prefill_ms is not summed; for one, .*layer 2, option "no_op"', done.stderr)


def test_a_list_and_a_metric_are_limited_like_any_number(ask: Ask) -> None:
    option = {"stats": {"ms": [3, 4]}, "metrics": {"kl_div": 0.5, "loss": 2}}
    told = ask({"0": {"a": option}}, "--objective", "metrics.kl_div", "--budget", "stats.ms.1<=4,metrics.loss<=2")
    assert told["costs"] == {"stats.ms.0": 3, "stats.ms.1": 4, "metrics.loss": 2}


def test_without_time_what_is_proven_is_told(ask: Ask) -> None:
    told = ask(library(3, 30, 8), "--objective", "metrics.kl_div", "--budget", "stats.memory_mib=70", "--gap", "0.5")
    assert told["bound"] <= told["total"]
    assert told["gap"] <= 0.5
    assert told["status"] == ("optimal" if told["gap"] <= 1e-6 else "feasible")


def test_nothing_heavy_and_no_database_is_loaded(tmp_path: Path) -> None:
    line = ["solve", "--table", str(written(tmp_path, library(0))), "--objective", "metrics.kl_div", "--json"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command(*line)[1:]],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["status"] == "optimal"
    loaded = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "solvers" in loaded
    assert not {"torch", "transformers", "ray", "sqlalchemy", "yaml", "matplotlib", "blocklib", "db"} & loaded
    assert not (tmp_path / "home").exists()


def test_the_examples_of_the_docs_run_as_shown(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCS.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"`(\S+\.json)`:\n\n```json\n(.*?)```", text, re.DOTALL)
    assert len(files) == 3
    for name, shown in files:
        Path(name).write_text(shown)
    runs = re.findall(r"^\$ nas (.*)\n([^`$]*)", text, re.MULTILINE)
    assert len(runs) == 4
    for line, shown in runs:
        done = here(tmp_path / "home", *shlex.split(line))
        assert done.returncode == 0, done.stderr
        assert _comparable(done.stdout) == _comparable(shown)


def _comparable(printed: str) -> list[str]:
    """Its lines, but for the last digits of a sum of rounded numbers."""
    return [re.sub(r"gap [^;]+", "gap", line.rstrip()) for line in printed.strip().splitlines()]


# --- mistakes -------------------------------------------------------------------------------------------------------


def with_number(written_as: str, shape: str = "library") -> str:
    """A table in which one number is something else."""
    if shape == "spans":
        return json.dumps(spans()).replace('"score": 0.5', f'"score": {written_as}')
    wrong = json.dumps(NUMBERS).replace("0.25", written_as)
    return f'{{"layer_12": {{"ffn_1": {json.dumps(NUMBERS)}, "ffn_0.5": {wrong}}}}}'


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("NaN", "is NaN"), ("Infinity", "is Infinity"), ("-Infinity", "is -Infinity"), ("1e999", "is Infinity"),
        ("1" + "0" * 400, r"is beyond 1e\+300"), ('"0.2"', 'is "0.2", not a number'), ("null", "is null, not a number"),
        ("true", "is true, not a number"), ("{}", "is missing"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_its_place(mistake: Mistake, tmp_path: Path, number: str, said: str) -> None:
    path = written(tmp_path, with_number(number))
    error = mistake(["solve", "--table", path, "--objective", "metrics.kl_div"])
    assert re.search(rf'error: {path}: layer 12, option "ffn_0\.5": metrics\.kl_div {said}', error), error
    path = written(tmp_path, with_number(number, "spans"))
    error = mistake(["solve", "--table", path])
    assert re.search(rf'error: {path}: options\[1\], option "kv2": score {said}', error), error


def test_a_number_that_is_missing_where_it_is_limited_is_refused(mistake: Mistake, tmp_path: Path) -> None:
    table = {"0": {"a": NUMBERS}, "7": {"a": {"stats": {}, "metrics": {"kl_div": 1}}}}
    line: list[str | Path] = ["solve", "--table", written(tmp_path, table), "--objective", "metrics.kl_div"]
    error = mistake([*line, "--budget", "stats.memory_mib=3"])
    assert 'layer 7, option "a": stats.memory_mib is missing' in error


def test_nan_is_refused_where_nobody_asked_for_it(mistake: Mistake, tmp_path: Path) -> None:
    option = NUMBERS | {"metrics": {"kl_div": 0, "scores": [1, math.nan]}}
    error = mistake(["solve", "--table", written(tmp_path, {"3": {"a": option}}), "--objective", "metrics.kl_div"])
    assert 'layer 3, option "a": metrics.scores.1 is NaN' in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"0": {"a": ', r"line 1, column 13: not JSON"),
        ("[1, 2]", r"a table is an object, of layers, of replacements or of slots .*, not a list; docs/tables\.md"),
        ("{}", r"not an empty object"),
        ('"x"', r'not "x"'),
        ('{"layers": {}}', r"'layers' is not a layer: a key ends with a whole number, like 12"),
        ('{"0": [1]}', r'layer 0 is a list; it is an object, like \{"ffn_0\.5"'),
        ('{"0": {}}', r"layer 0 has no options"),
        ('{"0": {"a": 3}}', r'layer 0, option "a" is 3; it is an object'),
        ('{"layer_1": {"a": {}}, "1": {"a": {}}}', r"'layer_1' and '1' are the same layer"),
        ('{"1": {"a": {"x": 1}}, "1": {"a": {"x": 1}}}', r"layer 1 is given twice"),
        ('{"1": {"a": {"x": 1}, "a": {"x": 2}}}', r'layer 1, option "a" is given twice'),
        ('{"1": {"a": {"x": 1, "x": 2}}}', r'layer 1, option "a": x is given twice'),
        ('{"1": {"a": {"x": {"y": 1}, "x.y": 2}}}', r'layer 1, option "a": x\.y is given twice'),
        ('{"slots": 2}', r"options is missing or null; it is a list"),
        ('{"slots": 0, "options": []}', r"slots is a whole number from 1 on, not 0"),
        ('{"slots": 1, "options": [], "budgte": {}}', r"unknown key 'budgte'; did you mean 'budget'\?"),
        ('{"slots": 1, "options": [3]}', r'options\[0\] is 3; it is an object, like \{"first": 0'),
        ('{"slots": 1, "options": [{"first": 0}]}', r"options\[0\]: name is missing"),
        ('{"slots": 1, "options": [{"name": "a", "first": -1, "score": 0}]}', r'option "a": first is a whole number'),
        ('{"slots": 1, "options": [{"name": "a", "first": 0, "span": 1.5}]}', r'option "a": span is a whole number'),
        ('{"slots": 1, "options": [{"name": "a", "first": 0, "cost": {}}]}', r"unknown key 'cost'; did you mean 'cost"),
        ('{"slots": 1, "options": [{"name": "a", "first": 0, "costs": {"score": 1}}]}', r"cannot be called score"),
        ('{"slots": 1, "options": [{"name": "a", "first": 3, "score": 0}]}', r"a at slot 3 is not within slots 0\.\.0"),
        ('{"slots": 2, "options": [{"name": "a", "first": 0, "score": 0}]}', r"no option covers slots 1"),
        ('{"slots": 1, "options": [], "budget": {"a": "x"}}', r'budget: a is "x", not a number'),
        ('{"slots": 1, "options": [], "budget": {"a": {"most": 1}}}', r"budget\.a: unknown key 'most'; .*min, max"),
    ],
)  # fmt: skip
def test_a_table_of_another_shape_is_told_what_would_be_right(
    mistake: Mistake, tmp_path: Path, text: str, said: str
) -> None:
    path = written(tmp_path, text)
    objective = [] if '"slots"' in text else ["--objective", "x"]
    error = mistake(["solve", "--table", path, *objective])
    assert re.search(said, error), error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "metrics.kldiv"], r"no option has 'metrics\.kldiv'; did you mean 'metrics\.kl_div'\? known: "
                                           r"stats\.memory_mib, stats\.time\.prefill_ms, metrics\.kl_div"),
        (["--objective", "metrics"], r"no option has 'metrics'; did you mean 'metrics\.kl_div'\?"),
        ([], r"this table needs --objective, .*like metrics\.kl_div"),
        (["--objective", "metrics.kl_div", "--budget", "stats.memory=3"], r"did you mean 'stats\.memory_mib'\?"),
        (["--objective", "metrics.kl_div", "--budget", "stats.memory_mib"], r"is not NAME=NUMBER.*in quotes"),
        (["--objective", "metrics.kl_div", "--budget", "stats.memory_mib=3 GiB"], r"'3 GiB' is not a number; .*unit"),
        (["--objective", "metrics.kl_div", "--budget", "stats.memory_mib=nan"], r"'nan' is not a number"),
        (["--objective", "metrics.kl_div", "--budget", "stats.memory_mib=3,stats.memory_mib<=4"], r"twice"),
        (["--objective", "metrics.kl_div", "--metric", "kl"], r"--metric goes with a search, not with --table"),
        (["--objective", "metrics.kl_div", "--db", "x.db"], r"--db goes with a search, not with --table"),
        (["tiny", "--objective", "metrics.kl_div"], r"name either a search or a table .*: not both"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_answered_in_a_line(
    mistake: Mistake, tmp_path: Path, arguments: list[str], said: str
) -> None:
    error = mistake(["solve", "--table", written(tmp_path, {"0": {"a": NUMBERS}}), *arguments])
    assert re.search(said, error), error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], r"name either a search or a table \(--table FILE\.json\): neither is given"),
        (["tiny"], r"there is no --budget; give one, like latency=50%"),
        (["tiny", "--budget", "latency=50%", "--objective", "x"], r"--objective goes with --table, not a search"),
        (["tiny", "--budget", "latency=50%", "--maximise"], r"--maximise goes with --table, not a search"),
        (["tiny", "--budget", "latency=50%", "--budget", "latency=40%"], r"limits latency twice"),
        (["--table", "nowhere.json"], r"nowhere\.json: No such file"),
    ],
)  # fmt: skip
def test_a_search_and_a_table_are_told_apart(mistake: Mistake, arguments: list[str], said: str) -> None:
    assert re.search(said, mistake(["solve", *arguments]))


def test_limits_that_cannot_be_met_are_named(mistake: Mistake, tmp_path: Path) -> None:
    path = written(tmp_path, {"0": {"a": NUMBERS}, "1": {"a": NUMBERS}})
    line: list[str | Path] = ["solve", "--table", path, "--objective", "metrics.kl_div", "--budget"]
    error = mistake([*line, "stats.memory_mib=7,stats.time.prefill_ms=9"])
    assert error == "error: a limit that cannot be met: stats.memory_mib has maximum 7 and is 8 at the least"
    assert "stats.memory_mib has minimum 9 and is 8 at the most" in mistake([*line, "stats.memory_mib>=9"])


def test_the_command_as_installed_says_it_in_one_line_too(tmp_path: Path) -> None:
    done = nas(tmp_path / "home", "solve", "--table", written(tmp_path, with_number("NaN")), "--objective", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f'error: {tmp_path}/table.json: layer 12, option "ffn_0.5": metrics.kl_div is NaN; '
        "give a finite number, or leave the option out\n"
    )


def test_limits_are_read_as_they_are_written() -> None:
    assert parse_limits(["stats.a b=1e3", " c <= 2, c>=-1.5 "]) == (
        Constraint("stats.a b", 1000),
        Constraint("c", 2),
        Constraint("c", -1.5, minimum=True),
    )


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_a_pit_of_brackets_is_refused(depth: int) -> None:
    with pytest.raises(TableError, match="nested too deep"):
        parse('{"0": {"a": {"x": ' + depth * "[" + depth * "]" + "}}}", "table.json")
