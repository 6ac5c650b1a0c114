"""The Python API does what the command line does, and costs nothing before it is used."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from searches import Here, environment, rows

import nas
from cost_models.metrics import METRICS
from db.errors import NotFoundError
from nas.errors import UsageError

HEAVY = {"torch", "transformers", "ray", "sqlalchemy", "pandas", "matplotlib", "pydantic", "rich"}


def python(home: Path, script: str) -> str:
    """The output of a script, run in a process of its own with `home` as its home."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(home), cwd=home.parent, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_no_library(tmp_path: Path) -> None:
    loaded = python(tmp_path, "import nas, sys; print(*sys.modules)").split()
    assert "nas" in loaded
    assert not HEAVY & set(loaded)


def test_every_public_name_is_there() -> None:
    for name in nas.__all__:
        assert getattr(nas, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nas.nothing  # noqa: B018


def test_asking_a_search_loads_no_torch(copy: Path) -> None:
    told = python(
        copy / "home",
        "import nas, sys\n"
        "search = nas.load('tiny')\n"
        "trial = search.solve('parameters=80%')\n"
        "front = search.front('memory', points=5)\n"
        "pool = search.pool({'parameters': '80%'}, count=2)\n"
        "print(trial.score == pool[0].score, len(front) > 1, trial.kl is None, trial.predicted['parameters'] > 0)\n"
        "print('torch' in sys.modules)\n",
    )
    assert told.split() == ["True", "True", "True", "True", "False"]


@pytest.mark.usefixtures("ray_here")
def test_a_trial_is_built_and_exported(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the README, and what the database then holds."""
    for name, value in environment(copy / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(copy)
    search = nas.run("job.yaml")  # finished: does no work
    trial = search.solve("parameters=70%")
    built = search.build(trial)
    exported = search.export(built, "child", format="hf")
    stored = search.export(built, "stored", format="gguf", precision="q4_0")
    assert "model-Q4_0.gguf" in stored.files
    assert search.outcome is not None
    assert search.outcome.report.is_file()
    assert exported.max_logit_difference < 1e-4
    assert search.build(built.id or 0).id == built.id
    assert search.trial is not None
    assert search.trial.id == built.id
    assert search.report("page.html") == Path("page.html")
    assert (copy / "child/config.json").is_file()
    row = next(row for row in rows(copy / "home", "trial") if row["id"] == built.id)
    assert row["kl"] == built.kl
    assert row["heal_tokens"] == 2048
    assert row["latency_ratio"] > 0


def test_a_built_trial_is_the_one_that_the_job_would_build(copy: Path) -> None:
    """One key for one child, whoever asks for it."""
    search = nas.load("tiny", db=copy / "home/nas.db", progress=False)
    first = search.trial
    assert first is not None
    before = {path: path.stat().st_mtime_ns for path in (copy / "home/children").iterdir()}
    again = search.build(search.solve(first.budget))
    assert (again.row.child_key, again.kl) == (first.row.child_key, first.kl)
    assert {path: path.stat().st_mtime_ns for path in (copy / "home/children").iterdir()} == before


def test_the_command_builds_the_same(copy: Path, here: Here) -> None:
    before = rows(copy / "home", "trial")
    done = here(copy / "home", "build", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kl"] == before[0]["kl"]
    assert rows(copy / "home", "trial") == before, "what is built already is not built again"
    assert here(copy / "home", "build", "99").returncode == 1


def test_a_notebook_shows_what_there_is(copy: Path) -> None:
    search = nas.load("tiny", db=copy / "home/nas.db", progress=False)
    trial = search.trial
    assert trial is not None
    assert set(METRICS) - {"energy"} == trial.predicted.keys() == trial.measured.keys(), "no meter was read"
    page = trial._repr_html_()
    assert f"trial {trial.id}" in page
    assert page.count("<tr>") > 10
    assert search.front("parameters", points=4)._repr_html_().startswith("<svg")
    assert str(trial.id) == page.partition("trial ")[2].partition("<")[0]


def test_progress_comes_in_lines(copy: Path) -> None:
    heard: list[str] = []
    nas.load("tiny", db=copy / "home/nas.db", progress=heard.append).pool("parameters=80%", count=2)
    assert heard


def test_trials_come_as_a_frame_where_pandas_is(copy: Path) -> None:
    found = nas.trials("tiny", where="kl is not None and parameters > 0", db=copy / "home/nas.db")
    first = found[0] if isinstance(found, list) else found.iloc[0].to_dict()
    assert len(found) == 1
    assert first["kl"] > 0


def test_searches_of_one_database_are_solved_together(copy: Path, tmp_path: Path) -> None:
    search = nas.load("tiny", db=copy / "home/nas.db", progress=False)
    elsewhere = shutil.copy(copy / "home/nas.db", tmp_path / "other.db")
    for searches in ([], [search, nas.load("tiny", db=elsewhere, progress=False)]):
        with pytest.raises(UsageError, match="of one database"):
            nas.solve_across(searches, "parameters=80%")
    assert nas.solve_across([search], "parameters=80%").score == search.solve("parameters=80%").score


def test_another_searchs_trial_is_not_built_or_exported(copy: Path, tmp_path: Path) -> None:
    search = nas.load("tiny", db=copy / "home/nas.db", progress=False)
    trial = search.trial
    assert trial is not None
    other = replace(search, row=SimpleNamespace(id="other", name="other"))
    for work in (other.build, lambda one: other.export(one, tmp_path / "child")):
        for named in (trial, trial.id):
            with pytest.raises(NotFoundError, match="not of other"):
                work(named)
    assert not (tmp_path / "child").exists()


def test_another_searchs_trial_is_refused(copy: Path) -> None:
    with pytest.raises(ValueError, match="no trial has the id 999"):
        nas.load("tiny", db=copy / "home/nas.db")[999]
