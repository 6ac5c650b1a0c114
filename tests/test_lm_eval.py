"""Tasks of lm_eval on a finished search's child and its parent. Skipped where lm_eval is not installed."""

import json
import shutil
from pathlib import Path

import pytest
import rows
from searches import nas as nas_command

import nas
from blocklib.assemble import assemble
from blocklib.block import Choice
from blocklib.parent import Parent
from db.store import Store
from nas.errors import EvaluationError, MissingFileError
from nas.job.config import load
from nas.search import Search
from nas.stages.child_file import save_child

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # lm_eval's and its libraries' are theirs

_DATA = """\
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
"""
_TASKS = {
    "toy_choice": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
""",
    "toy_text": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
    "toy_word": """\
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "toy_answer": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of offline tasks of each kind, their data beside them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [{"question": "import " * (at + 1), "choices": ["os", "the"], "answer": at % 2} for at in range(10)]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, text in _TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{_DATA}{text}")
    return folder


@pytest.fixture
def search(tmp_path: Path, trained_parent: Parent) -> Search:
    """A search whose only trial is built: the parent without its first FFN."""
    job = tmp_path / "job.yaml"
    job.write_text(f"parent: {trained_parent.source}\ndata: {{train: stdlib}}\nbudget: {{latency: 60%}}\n")
    architecture = trained_parent.architecture.with_(Choice.parse("L0.ffn=skip"))
    child = assemble(trained_parent, architecture, lambda choice: {})
    save_child(tmp_path / "home/children/child.safetensors", child, {})
    with Store.open(tmp_path / "home/nas.db") as store:
        row = rows.search(
            parent=trained_parent.source, parent_architecture=str(trained_parent.architecture),
            request=load(job).canonical(),
        )  # fmt: skip
        store.add_search(row)
        built = {"architecture": str(architecture), "child_key": "child", "kl": 0.5}
        trial = store.add_trial(rows.trial(search_id=row.id, **built))
    return nas.of_trial(trial.id, db=tmp_path / "home/nas.db", progress=False)


def test_parent_and_child_do_offline_tasks_of_every_kind(search: Search, tasks: Path) -> None:
    found = {one.metric: one for one in search.evaluate(1, str(tasks), batch=4)}

    assert found.keys() == {"acc", "word_perplexity", "bits_per_byte", "perplexity", "exact_match"}
    assert {one.samples for one in found.values()} == {10}
    assert (found["acc"].version, found["acc"].higher_is_better) == ("2.0", True)
    assert 0 <= found["acc"].parent <= 1
    for one in found.values():
        assert one.is_paired
        assert one.difference_error is not None
        assert one.difference == pytest.approx(one.child - one.parent)
    assert found["bits_per_byte"].difference != 0
    assert tuple(search.evaluations(1)) == tuple(sorted(found.values(), key=lambda one: (one.task, one.metric)))


def test_a_task_that_is_known_is_not_measured_again(search: Search, tasks: Path, tmp_path: Path) -> None:
    first = search.evaluate(1, str(tasks / "toy_choice.yaml"), limit=4)
    shutil.rmtree(tmp_path / "home/children")  # Nothing can be measured any more.

    assert search.evaluate(1, str(tasks / "toy_choice.yaml"), limit=4) == first
    assert first[0].samples == first[0].limit == 4
    with pytest.raises(MissingFileError):
        search.evaluate(1, str(tasks / "toy_choice.yaml"), limit=5)


def test_a_group_that_is_known_loads_neither_lm_eval_nor_a_model_again(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_ai2_arc(tmp_path)
    monkeypatch.chdir(tmp_path)
    first = search.evaluate(1, "ai2_arc", limit=4)
    assert {one.task for one in first} == {"arc_easy", "arc_challenge"}

    shutil.rmtree(tmp_path / "home/children")  # No model can be loaded any more,
    shutil.rmtree(tmp_path / "allenai")  # nor a task.

    assert search.evaluate(1, "ai2_arc", limit=4) == first
    assert search.evaluate(1, "arc_easy,ai2_arc", limit=4) == first
    with pytest.raises(EvaluationError, match="task ai2_arc: its data cannot be loaded"):
        search.evaluate(1, "ai2_arc", limit=5)


def _write_ai2_arc(folder: Path) -> None:
    """A data set of the name that lm_eval's group `ai2_arc` reads: `datasets` prefers a folder to the hub."""
    data = folder / "allenai/ai2_arc"
    configurations = []
    for name in ("ARC-Easy", "ARC-Challenge"):
        files = [{"split": split, "path": f"{name}/{split}.jsonl"} for split in ("train", "validation", "test")]
        configurations.append({"config_name": name, "data_files": files})
        for file in files:
            path = data / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            choices = {"text": ["os", "the"], "label": ["A", "B"]}
            lines = [
                {"question": "import " * (at + 1), "choices": choices, "answerKey": "AB"[at % 2]} for at in range(6)
            ]
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (data / "README.md").write_text(f"---\n{json.dumps({'configs': configurations})}\n---\n")


def test_a_task_that_fails_leaves_those_before_it(search: Search, tasks: Path) -> None:
    (tasks / "broken.yaml").write_text(f"task: broken\n{_DATA.replace('data.jsonl', 'gone.jsonl')}")

    with pytest.raises(EvaluationError, match=r"broken\.yaml: lm_eval cannot load this task.*gone\.jsonl"):
        search.evaluate(1, [f"{tasks}/toy_choice.yaml,{tasks}/broken.yaml"])

    assert [one.task for one in search.evaluations(1)] == ["toy_choice"]


def test_a_result_that_is_no_number_is_refused(search: Search, tasks: Path) -> None:
    (tasks / "utils.py").write_text("def count(doc, results):\n    return {'acc': float('nan')}\n")
    text = (tasks / "toy_choice.yaml").read_text().replace("toy_choice", "nothing")
    (tasks / "nothing.yaml").write_text(text + "process_results: !function utils.count\n")

    with pytest.raises(EvaluationError, match="task nothing: acc of the parent is nan"):
        search.evaluate(1, str(tasks / "nothing.yaml"))
    assert search.evaluations(1) == ()


def test_an_unknown_task_is_told_with_the_nearest(search: Search) -> None:
    with pytest.raises(EvaluationError, match=r"no task 'arc_eazy'; did you mean .*arc_easy"):
        search.evaluate(1, "arc_eazy")


def test_a_chat_template_that_is_not_there_is_told(search: Search, tasks: Path) -> None:
    with pytest.raises(EvaluationError, match="no chat template"):
        search.evaluate(1, str(tasks / "toy_choice.yaml"), chat=True)


def test_a_task_whose_data_are_on_the_hub_needs_a_network(search: Search, tmp_path: Path) -> None:
    done = nas_command(tmp_path / "home", "evaluate", "1", "--tasks", "arc_easy")

    assert done.returncode == 1
    assert "error: task arc_easy: its data cannot be loaded" in done.stderr
    assert "offline, give a task file with its data beside it" in done.stderr
