"""Evaluations without lm_eval: which tasks are asked for, how sure a change is, what is kept and shown."""

import importlib.util
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from searches import Here
from stored import add_measured, add_search, add_trial

from db.evaluations import EvaluationRow
from db.store import Store
from nas.errors import EvaluationError
from nas.evaluation.paired import ModelScore, difference_error, paired_error
from nas.evaluation.tasks import tasks_of
from nas.report import write_report
from nas.view.evaluation import Evaluation

_TASK = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl}}\n"


def _evaluation(child_key: str, metric: str = "acc", **columns: object) -> EvaluationRow:
    given = dict(
        run="r1", task="toy", version="1.0", higher_is_better=True, shots=0, limit=None, is_chat=False, samples=400,
        parent_value=0.625, child_value=0.5, parent_error=0.024, child_error=0.025, difference_error=0.0125,
        is_paired=True, harness="0.4.13",
    )  # fmt: skip
    return EvaluationRow(key=f"{child_key} {metric}", child_key=child_key, metric=metric, **given | columns)  # type: ignore[arg-type]


# How sure a change is


def test_the_error_of_a_change_is_of_the_differences_sample_by_sample() -> None:
    parent, child = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    changes = [theirs - own for own, theirs in zip(parent, child, strict=True)]

    found = paired_error(ModelScore(fmean(parent), 0.2, parent), ModelScore(fmean(child), 0.2, child))

    assert found == pytest.approx(stdev(changes) / math.sqrt(len(changes)))


def test_two_equal_models_differ_by_nothing_for_certain() -> None:
    answers = ModelScore(0.5, 0.25, [1.0, 0.0, 1.0, 0.0])

    assert difference_error(answers, answers) == (0.0, True)


_TEXTS = [(-30.0, 20), (-100.0, 80), (-55.0, 50), (-12.0, 9)]
_WORSE = [(-33.0, 20), (-104.0, 80), (-61.0, 50), (-12.5, 9)]


def _per_length(parts: list[Any]) -> float:
    return float(sum(part[0] for part in parts) / sum(part[1] for part in parts))


@pytest.mark.parametrize(
    ("value_of", "parent", "child"),
    [
        (lambda parts: -_per_length(parts) / math.log(2), _TEXTS, _WORSE),  # bits per byte
        (lambda parts: math.exp(-_per_length(parts)), _TEXTS, _WORSE),  # word and byte perplexity
        (lambda logs: math.exp(-fmean(logs)), [-0.5, -3.0, -1.25, -7.5], [-0.75, -2.5, -2.0, -9.0]),  # perplexity
    ],
)
def test_perplexities_and_bits_are_paired_by_leaving_out_one_sample_after_the_other(
    value_of: Callable[[list[Any]], float], parent: list[Any], child: list[Any]
) -> None:
    found = paired_error(ModelScore(value_of(parent), None, parent), ModelScore(value_of(child), None, child))

    left = [value_of(child[:at] + child[at + 1 :]) - value_of(parent[:at] + parent[at + 1 :]) for at in range(4)]
    assert found == pytest.approx(math.sqrt(3 / 4 * sum((each - fmean(left)) ** 2 for each in left)))
    assert found > 0


def test_the_jackknife_of_a_perplexity_is_near_the_delta_method_on_many_samples() -> None:
    chance = random.Random(1)
    parent = [chance.gauss(-3.0, 1.0) for _ in range(2000)]
    child = [log + chance.gauss(-0.1, 0.2) for log in parent]
    own, theirs = (math.exp(-fmean(logs)) for logs in (parent, child))

    found = paired_error(ModelScore(own, None, parent), ModelScore(theirs, None, child))

    slopes = [own * one - theirs * other for one, other in zip(parent, child, strict=True)]
    assert found == pytest.approx(stdev(slopes) / math.sqrt(len(slopes)), rel=0.01)


def test_a_perplexity_that_no_float_holds_without_one_sample_has_no_paired_error() -> None:
    logs = [-1410.0, 0.0]  # exp(705) is a float, exp(1410) is none
    score = ModelScore(math.exp(705), None, logs)

    assert paired_error(score, score) is None


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [1.0],
        [1.0, 1.0],  # their mean is not the value
        ["a", "b"],
        [(-1.0, 2), (-3.0, 4)],  # neither perplexity nor bits
        [(-1.0, 2), -3.0],
        [math.inf, -math.inf],
    ],
)
def test_samples_that_do_not_explain_the_value_leave_the_root_of_the_sum_of_squares(samples: list[object]) -> None:
    one, other = ModelScore(0.25, 0.03, samples), ModelScore(0.3, 0.04, samples)

    assert difference_error(one, other) == (pytest.approx(0.05), False)
    assert difference_error(one, ModelScore(0.3, None, samples)) == (None, False)


# Which tasks


def test_tasks_are_names_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(_TASK + "process_results: !function utils.count\n")
    (tmp_path / "mine.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "common.yaml").write_text("output_type: multiple_choice\n")

    found = tasks_of(["arc_easy,hellaswag", str(tmp_path), f"{tmp_path}/mine.yaml"])

    assert [task.name for task in found] == ["arc_easy", "hellaswag", "mine"]
    assert found[2].file == tmp_path / "mine.yaml"


def test_a_changed_line_of_data_is_another_task(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(_TASK)
    (tmp_path / "mine.jsonl").write_text('{"text": "one"}\n')
    before = tasks_of([f"{tmp_path}/mine.yaml"])
    (tmp_path / "of another.txt").write_text("nothing of this task's")
    assert tasks_of([f"{tmp_path}/mine.yaml"]) == before

    (tmp_path / "mine.jsonl").write_text('{"text": "two"}\n')

    assert tasks_of([f"{tmp_path}/mine.yaml"]) != before


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        ("task: [a\n", "mine.yaml", r"mine\.yaml: is not YAML"),
        ("group: all\ntask: [a, b]\n", "mine.yaml", r"mine\.yaml: has no key `task` with a name"),
        ("group: all\n", ".", "no YAML file in it holds a task"),
        (_TASK, "other.yaml", r"other\.yaml does not exist"),
        (_TASK, "", "no task is named"),
    ],
)
def test_a_wrong_task_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, asked: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(EvaluationError, match=said):
        tasks_of([asked])


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text(_TASK + f"description: {folder}\n")

    with pytest.raises(EvaluationError, match=r"two tasks are called mine: in .*one.*two"):
        tasks_of([str(tmp_path)])


# What is kept and shown


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one trial that was evaluated on two metrics."""
    with Store.open(tmp_path / "nas.db") as store:
        search = add_search(store, tmp_path)
        add_measured(store, search)
        trial = add_trial(store, search, "latency=60%", 1.0)
        unpaired = {
            "difference_error": 0.5,
            "is_paired": False,
            "higher_is_better": False,
            "limit": 400,
            "is_chat": True,
        }
        store.add_evaluations([
            _evaluation(trial.child_key),
            _evaluation(trial.child_key, "word_perplexity", parent_value=20.5, child_value=22.75, **unpaired),
        ])  # fmt: skip
    return tmp_path


def test_the_first_evaluation_of_a_key_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path / "nas.db") as store:
        store.add_evaluations([_evaluation("c1")])
        store.add_evaluations([_evaluation("c1", child_value=0.75), _evaluation("c1", "acc_norm")])

        found = store.evaluations("c1")

        assert [(row.metric, row.child_value, row.is_paired) for row in found] == [
            ("acc", 0.5, True),
            ("acc_norm", 0.5, True),
        ]
        assert found[0].difference == -0.125
        assert not store.evaluations("c2")


def test_a_trial_is_shown_with_its_evaluations(home: Path, here: Here) -> None:
    shown = here(home, "show", "1").stdout
    assert re.search(r"0\.6250 ± 0\.0240 +0\.5000 ± 0\.0250 +-0\.1250 ± 0\.0125 +400", shown)
    assert "toy (chat): word_perplexity, less is better" in shown
    assert "+2.2500 ± 0.5000 (not paired)  400 (limited)" in shown

    told = json.loads(here(home, "show", "1", "--json").stdout)["evaluations"]
    assert [(one["metric"], one["difference"], one["is_paired"]) for one in told] == [
        ("acc", -0.125, True),
        ("word_perplexity", 2.25, False),
    ]


def test_the_report_holds_them(home: Path) -> None:
    with Store.open(home / "nas.db") as store:
        search = store.searches()[0]
        page = write_report(store, search, home / "report.html").read_text()

        assert "<h2>On tasks</h2>" in page
        assert "-0.1250 ± 0.0125" in page


def test_the_version_of_lm_eval_is_told_line_by_line_where_lines_differ_in_it(home: Path, here: Here) -> None:
    with Store.open(home / "nas.db") as store:
        search = store.searches()[0]
        one_version = write_report(store, search, home / "report.html").read_text()
        assert "Measured by lm_eval 0.4.13 in float32." in one_version
        assert "lm_eval" not in here(home, "show", "1").stdout

        store.add_evaluations([_evaluation(store.trials()[0].child_key, "acc_norm", harness="0.4.14")])

        several = write_report(store, search, home / "report.html").read_text()
    assert "Measured by lm_eval in float32." in several
    assert [several.count(f"<td>{version}</td>") for version in ("0.4.13", "0.4.14")] == [2, 1]
    assert re.search(r"acc_norm.* 400 +0\.4\.14", here(home, "show", "1").stdout)


def test_an_error_that_nobody_knows_is_a_question_mark() -> None:
    row = _evaluation("c1", parent_error=None, difference_error=None, is_paired=False)

    assert Evaluation.of(row).said_parent == "0.6250 ± ?"
    assert Evaluation.of(row).said_change == "-0.1250 ± ?"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval_the_line_to_type_is_said(home: Path, here: Here) -> None:
    done = here(home, "evaluate", "1", "--tasks", "arc_easy")

    assert done.returncode == 1
    assert "pip install 'puzzle-nas[eval]'" in done.stderr
