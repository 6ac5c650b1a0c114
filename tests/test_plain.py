"""Searches for plain children: layers of one size, what that costs, and what is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from searches import Here, job, nas
from transformers import AutoModelForCausalLM

from blocklib.block import Architecture
from db.store import Store
from nas.compare.strategies import Asked, compare
from nas.errors import JobError
from nas.job.config import load
from nas.job.sections import Space
from nas.job.units import parse_budget
from nas.solve.solve import solve
from nas.stages.contest import Chosen, Contest

SPACE = {"plain": True, "ffn": ["50%", "25%"]}


def sizes(architecture: str) -> set[str]:
    """The different blocks of an architecture, dropped ones left out."""
    return {str(block) for _, block in Architecture.parse(architecture).placed()} - {"skip+skip"}


@pytest.fixture(scope="module")
def plain_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a search in a plain space, with its export."""
    folder = tmp_path_factory.mktemp("plain")
    asked = {
        "space": SPACE,
        "export": {"format": "plain", "out": str(folder / "child")},
        "budget": {"parameters": "80%"},
    }
    ran = nas(folder / "home", "search", job(folder, **asked))
    assert ran.returncode == 0, ran.stderr
    (folder / "said").write_text(ran.stdout)
    return folder


# The space


def test_a_plain_space_has_defaults_of_its_own() -> None:
    space = Space.model_validate({"plain": True})
    assert [str(one) for one in space.attention] == ["kv50%"]
    assert [str(one) for one in space.ffn] == ["ffn75%", "ffn50%", "ffn25%"]
    assert space.fuse is None
    assert space.drop_blocks
    assert Space.model_validate(space.model_dump(mode="json")) == space


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"attention": ["linear"]}, "attention: linear"),
        ({"attention": ["kv50%", "skip"]}, "attention: skip"),
        ({"attention": ["window32"]}, "attention: window32"),
        ({"ffn": ["50%", "skip"]}, "ffn: skip"),
        ({"ffn": ["moe50%"]}, "ffn: moe50%"),
        ({"fuse": {"longest": 2}}, "fuse"),
        ({"parallel": 2}, "parallel"),
    ],
)
def test_what_a_plain_space_cannot_hold_is_named(asked: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as refused:
        load(job(tmp_path, space={"plain": True} | asked))
    assert f"leave out {named}, or plain" in str(refused.value)
    assert "space.plain" in str(refused.value)


def test_a_plain_format_needs_a_plain_space(mistake: Callable[[Sequence[str | Path]], str], tmp_path: Path) -> None:
    said = mistake(["search", job(tmp_path, export={"format": "plain"})])
    assert "export.format" in said
    assert "space.plain: true" in said


# The search


def test_the_answer_is_plain_and_loads_as_its_parent_does(plain_search: Path) -> None:
    trial = json.loads(nas(plain_search / "home", "trials", "--json").stdout)
    (built,) = [one for one in trial if one["kl"] is not None]
    assert built["solver"] == "plain"
    assert built["status"] == "optimal"
    assert len(sizes(built["architecture"])) == 1
    model = AutoModelForCausalLM.from_pretrained(plain_search / "child")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(one.numel() for one in model.parameters()) == built["predicted_parameters"]


def test_the_price_of_being_plain_is_told_everywhere(plain_search: Path) -> None:
    told = "being plain costs "
    assert told in (plain_search / "said").read_text()
    assert told in (plain_search / "child/README.md").read_text()
    (report,) = (plain_search / "home/reports").glob("*.html")
    assert told in report.read_text()
    assert "among the same options" in (plain_search / "said").read_text()
    found = json.loads(nas(plain_search / "home", "solve", "tiny", "--budget", "parameters=80%", "--json").stdout)
    assert found["plain"]["score"] == found["score"]
    assert found["plain"]["other_score"] <= found["score"]


def test_real_kls_are_told_once_both_children_are_built(plain_search: Path) -> None:
    home = plain_search / "home"
    solved = json.loads(nas(home, "solve", "tiny", "--budget", "parameters=80%", "--json").stdout)
    other = solved["plain"]["trial"]
    assert "real KL" not in (plain_search / "said").read_text()
    built = nas(home, "build", str(other), "--json")
    assert built.returncode == 0, built.stderr
    kl = json.loads(built.stdout)["kl"]
    shown = json.loads(nas(home, "solve", "tiny", "--budget", "parameters=80%", "--json").stdout)
    assert shown["plain"]["other_kl"] == kl
    assert shown["plain"]["kl"] == shown["kl"]
    assert "of real KL: " in nas(home, "show", str(solved["id"])).stdout


def test_fronts_and_pools_of_a_plain_search_are_plain(plain_search: Path) -> None:
    home = plain_search / "home"
    front = json.loads(nas(home, "pareto", "tiny", "--cost", "parameters", "--points", "6", "--json").stdout)
    pool = json.loads(nas(home, "pool", "tiny", "--count", "4", "--apart", "2", "--json").stdout)
    found = [point["architecture"] for point in front]
    found += [one["trial"]["architecture"] for one in pool["found"]]
    assert len(found) >= 6
    assert all(len(sizes(architecture)) <= 1 for architecture in found)
    assert [one["trial"]["solver"] for one in pool["found"]] == ["plain", "pool", "pool", "pool"]


def test_limits_that_no_plain_child_meets_are_explained(plain_search: Path) -> None:
    ran = nas(plain_search / "home", "solve", "tiny", "--budget", "parameters=1%")
    assert ran.returncode == 1
    assert "no architecture with layers of one size of this space meets the budget" in ran.stderr
    assert "the least reachable is" in ran.stderr


def test_every_strategy_that_is_compared_keeps_to_layers_of_one_size(plain_search: Path) -> None:
    asked = ("--budget", "parameters=80%", "--evaluations", "8", "--seeds", "3", "--json")
    ran = nas(plain_search / "home", "compare", "tiny", *asked)
    assert ran.returncode == 0, ran.stderr
    found = {line["strategy"]: line for line in json.loads(ran.stdout)}
    answers = {name: line["trial"] for name, line in found.items() if line["trial"]}
    assert answers.keys() >= {"MIP", "greedy", "max parameters", "no-op only", "ShortGPT", "evolution", "refine"}
    assert answers.keys() >= {f"random, seed {seed}" for seed in range(3)}
    assert {name for name, trial in answers.items() if len(sizes(trial["architecture"])) > 1} == set()
    assert answers["MIP"]["solver"] == "plain"
    assert answers["MIP"]["score"] == min(trial["score"] for trial in answers.values())
    most = max(trial["predicted_parameters"] for trial in answers.values())
    assert answers["max parameters"]["predicted_parameters"] == most
    assert found["evolution"]["evaluations"] <= 8


def test_a_strategy_that_breaks_the_rule_is_left_out_with_the_reason(plain_search: Path) -> None:
    def free(contest: Contest) -> Chosen:
        answer = solve(replace(contest.known, is_plain=False), contest.budget)
        assert len(sizes(str(contest.known.architecture(answer.options)))) > 1
        return Chosen(answer)

    with Store.open(plain_search / "home/nas.db") as store:
        asked = Asked(parse_budget("parameters=90%"), seeds=0, strategies={"free": free})
        (line,) = compare(store, store.find_search("tiny"), asked, Console(quiet=True))
    assert line.trial is None
    assert "its layers are of several sizes, which space.plain excludes" in line.why_not


# An ordinary search


def test_an_ordinary_search_is_solved_for_a_plain_child(copy: Path, here: Here) -> None:
    budget = ["--budget", "parameters=80%"]
    plain = json.loads(here(copy / "home", "solve", "tiny", *budget, "--plain", "--json").stdout)
    free = json.loads(here(copy / "home", "solve", "tiny", *budget, "--json").stdout)
    assert len(sizes(plain["architecture"])) == 1
    assert free["plain"] is None
    assert plain["plain"]["other"] == free["architecture"]
    assert plain["plain"]["other_score"] == free["score"] <= plain["score"]
    said = here(copy / "home", "solve", "tiny", *budget, "--plain").stdout
    assert f"{plain['score'] - free['score']:.4f} of predicted KL" in said
    assert "among the same options" not in said


def test_plain_goes_with_a_search_only(mistake: Callable[[Sequence[str | Path]], str], tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    assert "--plain goes with a search" in mistake(["solve", "--table", tmp_path / "table.json", "--plain"])
