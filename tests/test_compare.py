"""Strategies compared on a finished search: every answer is what it is said to be, and is found out once."""

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from searches import Here, files, job, rows, the_error

from blocklib.assemble import assemble
from blocklib.block import Architecture
from db.store import Store
from nas.cli.printed import print_comparison
from nas.compare.strategies import STRATEGIES, Asked, Strategy, StrategyResult, compare
from nas.errors import BudgetNotMetError, StaleSearchError
from nas.job.units import parse_budget
from nas.scoring.block_influence import block_influence
from nas.scoring.layer_removal import loss_without
from nas.solve.solve import measured
from nas.stages.contest import Chosen, Contest
from nas.stages.devices import tensor
from nas.stages.evaluate import evaluate
from nas.stages.library import choice_weights
from nas.stages.real_values import Reality
from solvers.errors import Infeasible

ASKED = ("tiny", "--evaluations", "6", "--seeds", "1")
NAMES = {
    "MIP", "greedy", "uniform", "max parameters", "no-op only", "ShortGPT", "SLEB", "evolution", "refine",
    "random, seed 0",
}  # fmt: skip


def at_home(folder: Path, **changed: Any) -> Path:
    """The home of a copied search, whose row says that it lies there."""
    home = folder / "home"
    with sqlite3.connect(home / "nas.db") as connection:
        ((request,),) = connection.execute("SELECT request FROM search")
        request = json.dumps(json.loads(request) | {"home": str(home)} | changed)
        connection.execute("UPDATE search SET request = ?", [request])
    connection.close()
    return home


pytestmark = pytest.mark.usefixtures("ray_here")


def opened(home: Path) -> Store:
    return Store.open(home / "nas.db")


def run(home: Path, **asked: Any) -> list[StrategyResult]:
    with opened(home) as store:
        return compare(store, store.find_search("tiny"), Asked(**asked), Console(quiet=True))


@pytest.fixture(scope="module")
def compared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a search whose strategies have been compared."""
    home = at_home(shutil.copytree(finished, tmp_path_factory.mktemp("compared") / "copy"))
    run(home, evaluations=6, seeds=1)
    return home


def work_done(home: Path) -> list[int]:
    return [row["work_done"] for row in rows(home, "stage") if row["name"] == "compare"]


def test_every_answer_is_what_it_is_said_to_be(here: Here, compared: Path, tmp_path: Path) -> None:
    home, plot = compared, tmp_path / "strategies.svg"
    done = here(home, "compare", *ASKED, "--plot", plot, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {line["strategy"] for line in found} == NAMES
    answers = [line for line in found if line["trial"]]
    kls = [line["trial"]["kl_whole"] for line in answers]
    assert kls == sorted(kls)
    by_name = {line["strategy"]: line for line in answers}
    assert by_name["MIP"]["trial"]["score"] == min(line["trial"]["score"] for line in answers)
    assert by_name["MIP"]["trial"]["solver"] == "mip"
    assert all(0 < line["of_budget"] <= 1 + 1e-9 for line in answers)
    assert by_name["evolution"]["evaluations"] == by_name["refine"]["evaluations"] == 6
    assert by_name["refine"]["trial"]["kl_whole"] <= by_name["MIP"]["trial"]["kl_whole"]
    assert plot.stat().st_size > 0
    with opened(home) as store, Reality(store, store.find_search("tiny"), Console(quiet=True)) as reality:
        job = reality.job
        for line in answers:
            architecture = Architecture.parse(line["trial"]["architecture"])
            keys = job.built_keys(architecture.choices())
            child = assemble(
                job.parent, architecture, lambda c, keys=keys: choice_weights(job.parent, job.library, c, keys)
            )
            real = evaluate(job.parent.model, child, tensor(job.tokens.score, "cpu"))
            assert line["trial"]["kl_whole"] == pytest.approx(real.kl, rel=1e-4), line["strategy"]


def test_a_second_run_measures_nothing(here: Here, compared: Path) -> None:
    home = compared
    trials, written = rows(home, "trial"), files(home)
    evolved = [row for row in trials if row["solver"] == "evolution"]
    assert len(evolved) == 6
    assert all(row["kl_whole"] is not None for row in evolved)
    (name,) = optuna.get_all_study_names(f"sqlite:///{home}/nas.db")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{home}/nas.db")
    assert [each.value for each in study.trials] == [row["kl_whole"] for row in evolved]
    done = here(home, "compare", *ASKED)
    assert done.returncode == 0, done.stderr
    assert [name for name in NAMES if name not in done.stdout] == []
    done = here(home, "compare", *ASKED, "--only", "greedy", "--only", "MIP")
    assert {name for name in NAMES if name in done.stdout} == {"MIP", "greedy", "random, seed 0"}
    assert (rows(home, "trial"), files(home)) == (trials, written)
    first, *later = work_done(home)
    assert first > 6
    assert set(later) == {0}


def test_layers_are_removed_only_as_far_as_the_budget_asks(copy: Path) -> None:
    """Each round is measured once, whatever the budgets; a budget that nothing meets asks for none."""
    home = at_home(copy)
    sleb = {"SLEB": STRATEGIES["SLEB"]}
    layers = Architecture.parse(rows(home, "search")[0]["parent_architecture"]).layers

    def rounds_after(budget: str) -> list[dict[str, float]]:
        (line,) = run(home, seeds=0, budget=parse_budget(budget), strategies=sleb)
        if line.trial is not None:
            dropped = line.trial.architecture.split().count("skip+skip")
            assert line.evaluations == sum(layers - 2 - before for before in range(dropped)), budget
        (search,) = rows(home, "search")
        found: list[dict[str, float]] = (json.loads(search["removal"] or "null") or {}).get("rounds", [])
        return found

    assert rounds_after("parameters=20%") == []
    few = rounds_after("parameters=85%")
    assert 0 < len(few) < layers - 2
    assert [len(losses) for losses in few] == list(range(layers - 2, layers - 2 - len(few), -1))
    more = rounds_after("parameters=60%")
    assert more[: len(few)] == few
    assert len(few) < len(more) < layers - 2
    assert rounds_after("parameters=85%") == more
    assert work_done(home)[0] == 0
    assert work_done(home)[-1] == 0
    with opened(home) as store, Reality(store, store.find_search("tiny"), Console(quiet=True)) as reality:
        parent, text = reality.job.parent, tensor(reality.job.tokens.calibration, "cpu")
        first = min(more[0], key=more[0].__getitem__)
        left = sorted(map(int, more[1]))
        measured = reality.losses([int(first)], left)
        assert reality.measured == 0
    assert measured == pytest.approx(loss_without(parent, text, [int(first)], left), rel=1e-4)


def test_shortgpt_needs_no_rounds(copy: Path) -> None:
    home = at_home(copy)
    for _ in range(2):
        run(home, seeds=0, budget=parse_budget("parameters=75%"), strategies={"ShortGPT": STRATEGIES["ShortGPT"]})
    (search,) = rows(home, "search")
    removal = json.loads(search["removal"])
    assert removal.keys() == {"influence"}
    assert work_done(home) == [2, 0], "the influence and the answer's real KL"
    with opened(home) as store, Reality(store, store.find_search("tiny"), Console(quiet=True)) as reality:
        parent, text = reality.job.parent, tensor(reality.job.tokens.calibration, "cpu")
    assert removal["influence"] == pytest.approx(block_influence(parent, text), rel=1e-4)


def test_who_cannot_meet_the_budget_says_so_in_a_line(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def late(contest: Contest) -> Chosen:
        raise TimeoutError("in 0 s no solution was found")

    strategies: dict[str, Strategy] = {"SLEB": STRATEGIES["SLEB"], "late": late}
    lines = run(compared, seeds=0, budget=parse_budget("parameters=20%"), strategies=strategies)
    with opened(compared) as store:
        print_comparison(store.find_search("tiny"), lines, as_json=False)
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("SLEB: with 8 layers dropped, the most possible; parameters ")
    assert ": its value is " in last[0]
    assert last[0].endswith("% of the parent's)")
    assert last[1] == "late: in 0 s no solution was found"


def test_layers_that_must_stay_are_told_before_anything_is_measured(copy: Path) -> None:
    with opened(at_home(copy)) as store, Reality(store, store.find_search("tiny"), Console(quiet=True)) as reality:
        known = measured(store, store.find_search("tiny"))
        lean = replace(known, options=tuple(option for option in known.options if option.key != (4, 1, "skip")))
        contest = Contest(store, lean, parse_budget("parameters=75%"), reality, 6)
        with pytest.raises(Infeasible, match=r"not every inner layer can be left out; give space\.drop_blocks"):
            STRATEGIES["SLEB"](contest)
        whole = replace(lean, options=tuple(one for one in lean.options if "skip" not in one.name))
        with pytest.raises(Infeasible, match=r"^no layer can be left out; give space\.drop_blocks"):
            STRATEGIES["ShortGPT"](replace(contest, known=whole))
        assert reality.measured == 0


def test_healed_and_timed_alike(copy: Path) -> None:
    home = at_home(copy)
    strategies = {name: STRATEGIES[name] for name in ("MIP", "uniform")}
    lines = run(home, seeds=0, heal=True, time=True, strategies=strategies)
    assert sorted(line.strategy for line in lines) == ["MIP", "uniform"]
    for line in lines:
        trial = line.trial
        assert trial is not None
        assert trial.heal_tokens == 2048
        assert None not in (trial.kl, trial.kl_before_heal, trial.kl_whole, trial.latency_ratio)
        assert len({trial.kl, trial.kl_before_heal, trial.kl_whole}) == 3
    # The search's own trial is one of them: it was healed and timed already.
    assert len(rows(home, "trial")) == 2
    assert work_done(home) == [2 + 2]
    run(home, seeds=0, heal=True, time=True, strategies=strategies)
    assert work_done(home) == [2 + 2, 0]


def test_times_of_another_machine_are_not_put_beside_the_searchs(copy: Path) -> None:
    home = at_home(copy)
    (search,) = rows(home, "search")
    with sqlite3.connect(home / "nas.db") as connection:
        connection.execute("UPDATE search SET hardware = 'M2'")
    connection.close()
    with pytest.raises(StaleSearchError, match=r"timed on another machine.*, M2: here it is ") as said:
        run(home, seeds=0, time=True, budget=parse_budget("parameters=80%"))
    assert f"here it is {search['hardware']}" in str(said.value)


def test_what_cannot_be_compared_says_why(here: Here, copy: Path) -> None:
    home = at_home(copy)
    with pytest.raises(BudgetNotMetError, match=r"memory 1\.00 KiB: the least reachable is"):
        run(home, budget=parse_budget("memory=1 KiB"))
    error = the_error(here(home, "compare", "tiny", "--plot", "strategies.pdf").stderr)
    assert error == "error: cannot draw to strategies.pdf; give a file that ends in .svg or .png"
    error = the_error(here(home, "compare", "tiny", "--only", "greedy", "--only", "genetic").stderr)
    assert error.startswith("error: there is no strategy 'genetic'; there are MIP, greedy, uniform, ")
    at_home(copy, heal=None)
    with pytest.raises(ValueError, match="search tiny heals no child"):
        run(home, heal=True)
    (row,) = rows(home, "search")
    data = json.loads(row["request"])["data"]
    at_home(copy, data=data | {"score_tokens": 512})
    with pytest.raises(StaleSearchError, match="its text or the libraries have changed; run `nas search` on its job"):
        run(home, seeds=0, evaluations=1)


def test_a_search_is_solved_past_its_sum_of_scores(here: Here, compared: Path) -> None:
    """Measurements are kept: a longer run resumes, and a finished one only prints its answer."""
    solved = ("solve", "tiny", "--budget", "parameters=75%", "--json")
    done = here(compared, *solved, "--refine", "8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    refined = [row for row in rows(compared, "trial") if row["solver"] == "refine"]
    assert found["solver"] == "refine"
    assert found["kl_whole"] == min(row["kl_whole"] for row in refined)
    assert len(refined) == 8, "the six that were compared, and two more"
    additive = next(row for row in rows(compared, "trial") if row["solver"] == "mip")
    assert refined[0]["architecture"] == additive["architecture"]
    again = here(compared, *solved, "--refine", "8")
    assert json.loads(again.stdout) == found
    assert [row["work_done"] for row in rows(compared, "stage") if row["name"] == "refine"] == [2, 0]
    told = here(compared, *solved[:-1], "--refine", "8")
    assert "on the score text, untrained" in told.stdout
    assert the_error(here(compared, *solved, "--refine", "8", "--budget", "memory=1KiB").stderr).startswith(
        "error: no architecture of this space meets the budget"
    )


def test_a_job_may_go_past_the_sum_of_scores(here: Here, copy: Path) -> None:
    """The library is there; what is new is measured, the best of it built, and nothing is done twice."""
    home, asked = copy / "home", job(copy, solver={"refine": 6})
    done = here(home, "search", asked, "--json")
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout)
    assert (trial["solver"], trial["kl"] is not None) == ("refine", True)
    trials = [row for row in rows(home, "trial") if row["search_id"] == trial["search_id"]]
    evaluated = {row["architecture"]: row["kl_whole"] for row in trials if row["kl_whole"] is not None}
    assert len(evaluated) == 6
    assert evaluated[trial["architecture"]] == min(evaluated.values())
    written = files(home)
    again = here(home, "search", asked, "--json")
    assert json.loads(again.stdout)["id"] == trial["id"]
    assert files(home) == written
    assert [row["work_done"] for row in rows(home, "stage") if row["name"] == "refine"] == [6, 0]
