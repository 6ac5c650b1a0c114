"""`nas tune` finds a learning rate, keeps every trial of it, and the next search of the parent takes the best."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from parents import random_ids, random_parent, texts_of
from rows import distillation, tune_trial
from searches import Here, job, parent_folder, rows, the_error

from blocklib.block import Choice
from blocklib.distil import Distilled, HeldOutLosses, Progress, Training, distil, train
from blocklib.errors import NotFiniteError
from blocklib.initial_weights import build
from db.models import DistillationRow
from db.store import Store
from nas.errors import TuningError
from nas.job.config import load, parse
from nas.job.learning_rate import DEFAULT_RATE, TrainedUnder, best_of, resolved_rate
from nas.job.training import Distill
from nas.stages.prepare import Job, prepare
from nas.stages.tune import TuneRequest, tune
from nas.stages.tune_study import CHECKS, Rates, TriedRate, is_hopeless, next_rate
from nas.stages.useless_training import useless_training
from nas.terminal.console import Terminal

SPACE = {"attention": ["kv50%"], "ffn": ["50%", "25%"], "fuse": None, "drop_blocks": False}
CONSTANT = {"schedule": "constant", "warmup": 0.0}
"""A schedule under which large rates do harm."""


def tried(rate: float, objective: float | None, *points: float) -> TriedRate:
    """A trial that ended; without an objective, one that diverged."""
    state = "pruned" if objective is None else "complete"
    reported = tuple((float(step), point) for step, point in enumerate(points, 1))
    return TriedRate(rate, objective, state, reported, 1.0)  # type: ignore[arg-type]


# --- the study ------------------------------------------------------------------------------------------------------


def test_the_study_finds_the_best_rate_of_a_valley() -> None:
    trials: list[TriedRate] = []
    for _ in range(14):
        rate = next_rate(trials)
        loss = 0.5 + 0.2 * math.log10(rate / 1e-3) ** 2
        trials.append(tried(rate, loss, *(CHECKS + 1) * [loss]))
    assert trials[0].learning_rate == DEFAULT_RATE
    best = min(trials, key=lambda one: one.objective or math.inf)
    assert 5e-4 < best.learning_rate < 2e-3
    rates = [one.learning_rate for one in trials]
    assert len(set(rates)) == len(rates)
    assert all(1e-5 <= rate <= 3e-2 and float(f"{rate:.3g}") == rate for rate in rates)


def test_the_next_rate_follows_from_the_trials_alone() -> None:
    trials = [tried(3e-3, 1.2, 1.5, 1.4, 1.3, 1.2), tried(1e-2, None, 2.0), tried(1e-4, 0.8, 0.9, 0.8, 0.8, 0.8)]
    assert next_rate(trials) == next_rate(list(trials))
    assert next_rate(trials) != next_rate(trials[:2])


def test_a_trial_worse_than_the_median_is_stopped_once_three_have_ended() -> None:
    ended = [tried(rate, 0.7, 0.9, 0.8, 0.7, 0.7) for rate in (1e-4, 3e-4, 1e-3)]
    assert is_hopeless(ended, [(1.0, 0.95)])
    assert not is_hopeless(ended, [(1.0, 0.85)])
    assert is_hopeless(ended, [(1.0, 0.85), (2.0, 0.84)])
    assert is_hopeless(ended, [(1.0, math.inf)])
    assert not is_hopeless([*ended[:2], tried(1e-2, None, 3.0)], [(1.0, 9.0)]), "one of the three diverged"


# --- training with checks -------------------------------------------------------------------------------------------


def test_checks_change_nothing_and_end_with_the_loss_of_a_search() -> None:
    """The same losses as `distil`, with adapters, too."""
    parent = random_parent()
    texts = texts_of(parent, *(random_ids(parent, 16, 16, seed=seed) for seed in (1, 2, 3)), batch=4)
    trainings = {
        Choice.parse("L0.attention=kv1"): Training(640, 1e-2),
        Choice.parse("L1.ffn=ffn12"): Training(640, 1e-2, lora_rank=2),
        Choice.parse("L2.ffn=ffn24"): Training(320, 1e-2),
    }
    searched = [event for event in distil(parent, trainings, texts) if isinstance(event, Distilled)]
    weights = {unit.choice: unit.fitted for unit in build(parent, list(trainings), texts.calibration, 4, fit=True)}
    events = list(train(parent, trainings, weights, texts, CHECKS))
    checks = [event for event in events if isinstance(event, HeldOutLosses)]
    assert [check.done_tokens for check in checks] == [192, 320, 512, 640]
    assert len([event for event in events if isinstance(event, Progress)]) == 10
    assert checks[-1].losses == {found.choice: found.loss_trained for found in searched}
    assert checks[0].losses != checks[-1].losses


def test_training_that_diverges_is_an_error() -> None:
    parent, part = random_parent(), Choice.parse("L1.ffn=ffn12")
    texts = texts_of(parent, *(random_ids(parent, 16, 16, seed=seed) for seed in (1, 2, 3)), batch=4)
    (unit,) = build(parent, [part], texts.calibration, 4, fit=True)
    with pytest.raises(NotFiniteError, match=r"L1\.ffn=ffn12"):
        list(train(parent, {part: Training(1024, 1e30)}, {part: unit.fitted}, texts, CHECKS))


# --- which rate a search takes --------------------------------------------------------------------------------------


def test_the_rate_is_the_jobs_own_then_the_tuned_one_then_the_default() -> None:
    rows = [tune_trial(0, 3e-3, 0.9), tune_trial(1, 1e-3, 0.6), tune_trial(2, 1e-2, 0.5, state="pruned")]
    assert best_of(rows) is rows[1]
    own = resolved_rate(Distill(learning_rate=5e-3), 4096, rows)
    tuned, default = resolved_rate(Distill(), 4096, rows), resolved_rate(Distill(), 4096, ())
    assert [(rate.value, rate.source) for rate in (own, tuned, default)] == [
        (5e-3, "job"), (1e-3, "tuned"), (DEFAULT_RATE, "default"),
    ]  # fmt: skip
    assert resolved_rate(Distill(), 4096, rows[2:]).source == "default", "a pruned trial is no answer"
    assert best_of([]) is None


def test_a_tune_under_the_jobs_own_settings_counts_first() -> None:
    here = tune_trial(0, 1e-3, 0.6)
    other = tune_trial(0, 2e-4, 0.4, study="s2", tokens=65536)
    adapters = tune_trial(0, 9e-3, 0.3, study="s3", tokens=65536, lora_rank=8)
    rows = [here, other, adapters]
    assert resolved_rate(Distill(tokens=4096), 10**6, rows).value == 1e-3
    far = resolved_rate(Distill(tokens=8192), 10**6, rows[1:])
    assert (far.value, far.elsewhere) == (2e-4, TrainedUnder(65536, 8, "cosine", 0.05, 0.0, None))
    assert "65,536 tokens" in str(far)
    assert resolved_rate(Distill(tokens=8192, lora_rank=8), 10**6, rows).value == 9e-3


def prepared(folder: Path, store: Store | None = None, **changed: Any) -> Job:
    request = load(job(folder, space=SPACE, **changed))
    return prepare(request) if store is None else prepare(request, tried=store.tune_trials)


def test_a_tuned_rate_makes_the_keys_that_it_makes_in_a_job(tmp_path: Path) -> None:
    untuned = prepared(tmp_path)
    with Store.open(tmp_path / "nas.db") as store:
        store.add_tune_trial(tune_trial(0, 1.23e-3, 0.6, parent_digest=untuned.parent.digest))
        store.add_tune_trial(tune_trial(0, 9e-4, 0.1, study="s2", parent_digest="another parent"))
        tuned, default = prepared(tmp_path, store), prepared(tmp_path, store, distill={"learning_rate": DEFAULT_RATE})
        explicit = prepared(tmp_path, distill={"learning_rate": 1.23e-3})
    assert (tuned.rate.source, explicit.rate.source, default.rate.source) == ("tuned", "job", "job")
    assert tuned.request.distill.learning_rate == 1.23e-3
    assert (tuned.id, untuned.id) == (explicit.id, default.id)
    assert tuned.id != untuned.id
    assert [tuned.build_key(part) for part in tuned.to_build] == [explicit.build_key(part) for part in tuned.to_build]
    assert not {untuned.build_key(part) for part in tuned.to_build} & {*map(tuned.build_key, tuned.to_build)}


# --- what training left useless -------------------------------------------------------------------------------------


def distilled(key: str, choice: str, trained: float | None, fitted: float | None = 0.5) -> DistillationRow:
    return distillation(key, choice=choice, loss_first_weights=0.6, loss_least_squares=fitted, loss_trained=trained)


def test_useless_training_is_counted_by_kind() -> None:
    better = [distilled(f"b{layer}", f"L{layer}.ffn=ffn8", 0.4) for layer in range(3)]
    worse = [distilled("w", "L0.attention=kv1", 0.7), distilled("e", "L3.ffn=linear", 0.6, fitted=None)]
    untrained = [distilled("u", "L4.ffn=ffn8", None)]
    assert useless_training(better + untrained) is None
    few = useless_training(better + worse + untrained)
    assert few is not None
    assert "2 of 5 subblocks" in few
    assert few.endswith(": 1 of 1 kv, 1 of 1 linear")
    most = useless_training(worse + better[:1])
    assert most is not None
    assert "2 of 3 subblocks" in most
    assert "nas tune" in most


# --- the command ----------------------------------------------------------------------------------------------------


def tuned_by(here: Here, home: Path, *arguments: str | Path) -> dict[str, Any]:
    done = here(home, "tune", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_trials_are_kept_and_not_trained_again(here: Here, tmp_path: Path) -> None:
    """A tune of two trials that goes on to five ends as one of five does."""
    home, file = tmp_path / "home", job(tmp_path, space=SPACE, distill=CONSTANT)
    first = tuned_by(here, home, file, "--trials", "2", "--layers", "0,9")
    kept = rows(home, "tune_trial")
    assert (first["trained"], len(kept)) == (2, 2)
    assert first["layers"] == [0, 9]
    assert len(first["choices"]) == 6
    again = tuned_by(here, home, file, "--trials", "5", "--layers", "0,9")
    after = {row["key"]: row for row in rows(home, "tune_trial")}
    assert (again["trained"], len(after)) == (3, 5)
    assert all(after[row["key"]] == row for row in kept)
    nothing = tuned_by(here, home, file, "--trials", "5", "--layers", "0,9")
    assert nothing == again | {"trained": 0}
    assert {row["key"]: row for row in rows(home, "tune_trial")} == after
    whole = tuned_by(here, tmp_path / "whole", file, "--trials", "5", "--layers", "0,9")
    without = {"trained": 5, "trials": None}
    assert whole | without == again | without
    for one, other in zip(whole["trials"], again["trials"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert rows(home, "search") == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_the_best_rate_is_used_by_the_next_search(here: Here, timed: Path) -> None:
    home, distill = timed / "home", CONSTANT
    file = job(timed, distill=distill)
    found = tuned_by(here, home, file, "--trials", "6", "--layers", "5")
    ended = {one["learning_rate"]: one["objective"] for one in found["trials"] if one["state"] == "complete"}
    assert found["learning_rate"] == min(ended, key=lambda rate: ended[rate])
    assert found["objective"] == min(ended.values()) < 1
    large = [one for one in found["trials"] if one["learning_rate"] > 1.5e-2]
    assert large, "a rate that does harm was tried"
    assert all(one["state"] == "pruned" or one["objective"] > 2 * found["objective"] for one in large)
    done = here(home, "search", file)
    assert done.returncode == 0, done.stderr
    said = f"learning rate of distillation: {found['learning_rate']:g}, as nas tune found for this parent"
    assert said in done.stdout.splitlines()
    (search,) = rows(home, "search")
    assert search["rate_source"] == "tuned"
    assert json.loads(search["request"])["distill"]["learning_rate"] == found["learning_rate"]
    report = (home / "reports" / f"{search['id']}.html").read_text()
    assert f"{found['learning_rate']:g}, as nas tune found for this parent" in report
    # The same rate in the job is the same search, which has nothing left to do.
    known = rows(home, "distillation")
    done = here(home, "search", job(timed, distill=distill | {"learning_rate": found["learning_rate"]}))
    assert done.returncode == 0, done.stderr
    assert "the job's own" in done.stdout
    assert rows(home, "distillation") == known
    assert [(row["id"], row["rate_source"]) for row in rows(home, "search")] == [(search["id"], "job")]


@pytest.mark.usefixtures("ray_here")
def test_rates_that_diverge_are_no_crash(tmp_path: Path) -> None:
    file = job(tmp_path, space=SPACE, home=str(tmp_path / "home"), distill={"least_squares": False})
    wanted = TuneRequest(2, layers=[3], rates=Rates(least=1e20, greatest=1e30, first=1e30))
    with Store.open(tmp_path / "nas.db") as store:
        with pytest.raises(TuningError, match="none of the 2 learning rates"):
            tune(load(file), store, Terminal(quiet=True), wanted)
        digest = prepare(load(file)).parent.digest
        kept = store.tune_trials(digest)
        assert [(row.state, row.objective, row.number) for row in kept] == [("pruned", None, 0), ("pruned", None, 1)]
        assert prepare(load(file), tried=store.tune_trials).rate.source == "default"


@pytest.mark.parametrize(
    ("changed", "arguments", "said"),
    [
        ({"distill": {"tokens": 0}}, (), r"distill\.tokens: 0 trains nothing"),
        ({"space": SPACE | {"attention": ["skip"], "ffn": ["skip"]}}, (), r"space: no subblock .* is trained"),
        ({"distill": {"kinds": {"kv": {"tokens": 0}, "ffn": {"learning_rate": 1e-3}}}}, (), r"space: no subblock"),
        ({}, ("--layers", "0,10"), r"--layers: .* has the layers 0 to 9, and no 10"),
        ({}, ("--layers", "first"), r"'first' is no list of layers"),
    ],
    ids=["no tokens", "no weights", "no common rate", "no such layer", "no layers"],
)
def test_what_cannot_be_tuned_is_an_error_of_one_line(
    here: Here, tmp_path: Path, changed: dict[str, Any], arguments: tuple[str, ...], said: str
) -> None:
    file = job(tmp_path, **{"space": SPACE} | changed)
    done = here(tmp_path / "home", "tune", file, *arguments)
    assert done.returncode in (1, 2)
    error = the_error(done.stderr)
    assert "\n" not in error
    assert re.search(said, error), error
    assert not (tmp_path / "home/nas.db").exists() or rows(tmp_path / "home", "tune_trial") == []


def test_a_job_may_leave_the_rate_out(tmp_path: Path) -> None:
    text = yaml.safe_dump({"parent": str(parent_folder()), "data": {"train": "stdlib"}, "budget": {"latency": "60%"}})
    request = parse(text, "job.yaml")
    assert request.distill.learning_rate is None
    assert request.at_rate(2e-3).distill == Distill(learning_rate=2e-3)
    assert parse(yaml.safe_dump(request.canonical()), "job.yaml") == request
