"""The pages of docs/adding: each shows the code of an example, and that example runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from searches import environment, rows

HOUSE = Path(__file__).parents[1]
EXAMPLES = HOUSE / "examples/adding"
PAGES = {"kind": "a_kind.py", "family": "a_family.py", "metric": "a_metric.patch", "strategy": "a_strategy.py"}


def code_of(example: str) -> str:
    """The code of a script, or the lines that a patch adds."""
    text = (EXAMPLES / example).read_text(encoding="utf-8")
    if not example.endswith(".patch"):
        return text
    return "".join(f"{line[1:]}\n" for line in text.splitlines() if line.startswith("+"))


def python(folder: Path, home: Path, *arguments: str | Path) -> str:
    """The output of Python, run in `folder` on the packages there."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment(home) | {"PYTHONPATH": str(folder)}, cwd=folder,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_page_has_an_example() -> None:
    assert {path.stem for path in (HOUSE / "docs/adding").glob("*.md")} == PAGES.keys()
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == set(PAGES.values())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_code_of_its_example(page: str) -> None:
    text = (HOUSE / f"docs/adding/{page}.md").read_text(encoding="utf-8")
    assert f"examples/adding/{PAGES[page]}" in text
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert dedent(block) in code_of(PAGES[page])


def test_a_kind_is_built_scored_and_chosen(tmp_path: Path) -> None:
    chosen, proof = python(HOUSE, tmp_path, EXAMPLES / "a_kind.py").splitlines()
    assert "low_rank96" in chosen.split()
    assert proof.endswith(", optimal")


def test_a_family_loads_and_has_children(tmp_path: Path) -> None:
    parent, child = python(HOUSE, tmp_path, EXAMPLES / "a_family.py").splitlines()
    assert parent.startswith("parent: kv4+ffn48 kv4+ffn48 kv4+ffn48: ")
    assert child.startswith("child:  kv4+ffn48 kv4+skip kv4+ffn48: ")


def test_a_strategy_stands_among_the_others(copy: Path) -> None:
    home = copy / "home"
    told = python(HOUSE, home, EXAMPLES / "a_strategy.py", "tiny", "parameters=75%").splitlines()
    by_name = dict(line.split(": ", 1) for line in told)
    assert by_name.keys() >= {"cheapest", "MIP", "greedy"}
    assert by_name["cheapest"].startswith("KL ")
    latencies = {row["solver"]: row["predicted_latency_s"] for row in rows(home, "trial")}
    assert latencies["cheapest"] == min(latencies.values())


def test_a_metric_limits_a_search_of_before(copy: Path, tmp_path: Path) -> None:
    """In a copy of the tree: the database gets its columns, and a budget names it."""
    home, tree = copy / "home", tmp_path / "tree"
    for folder in ("nas", "blocklib", "cost_models", "solvers", "db", "tests"):
        shutil.copytree(HOUSE / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}  # or it would look for a repository around it
    subprocess.run(["git", "apply", EXAMPLES / "a_metric.patch"], cwd=tree, env=alone, check=True)
    solved = json.loads(python(tree, home, "-m", "nas.cli.main", "solve", "tiny", "--budget", "active=70%", "--json"))
    assert solved["status"] == "optimal"
    (search,) = rows(home, "search")
    whole = json.loads(search["parent_costs"])["whole"]["active_parameters"]
    trial = next(row for row in rows(home, "trial") if row["id"] == solved["id"])
    assert 0 < trial["predicted_active_parameters"] <= 0.7 * whole
    python(tree, home, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_metrics.py")
