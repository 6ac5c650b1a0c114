"""The command line: what it answers from a finished search, and what it says of each mistake."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from parents import FAMILIES, random_model
from safetensors.torch import load_file, save_file
from searches import Here, command, environment, job, nas, parent_folder, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from nas.files.home import child_file
from nas.job import config
from nas.job.request import EMBEDDED
from nas.stages.child_file import load_child

Mistake = Callable[[Sequence[str | Path]], str]


def _json(done: "subprocess.CompletedProcess[str]") -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- answers --------------------------------------------------------------------------------------------------------


def test_another_budget_is_solved_without_torch(copy: Path) -> None:
    line = ["-X", "importtime", *command("solve", "tiny", "--budget", "parameters=85%", "--json")[1:]]
    done = subprocess.run([sys.executable, *line], env=environment(copy / "home"), capture_output=True, text=True)
    trial = _json(done)
    (search,) = rows(copy / "home", "search")
    whole = json.loads(search["parent_costs"])["whole"]["parameters"]
    assert trial["predicted_parameters"] <= 0.85 * whole
    assert (trial["status"], trial["latency_s"], trial["kl"]) == ("optimal", None, None)
    # The line of a module ends with its name.
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "db.store" in loaded
    assert not {"torch", "transformers", "ray"} & loaded


def test_a_trial_solved_twice_is_one(copy: Path) -> None:
    first, again = (_json(nas(copy / "home", "solve", "tiny", "--budget", "memory=90%", "--json")) for _ in range(2))
    assert first == again


def test_an_answer_says_what_its_budget_is_worth_and_what_was_almost_chosen(copy: Path) -> None:
    home = copy / "home"
    trial = _json(nas(home, "solve", "tiny", "--budget", "parameters=80%,memory=99%", "--json"))
    explained = trial["details"]["explained"]
    size, memory = explained["prices"]
    assert (size["metric"], memory["metric"]) == ("parameters", "memory")
    (search,) = rows(home, "search")
    assert size["step"] == pytest.approx(0.008 * json.loads(search["parent_costs"])["whole"]["parameters"])
    assert size["buys"] > 0
    assert memory["buys"] == 0
    assert explained["close_calls"]
    for call in explained["close_calls"]:
        assert not set(call["choices"]) & set(trial["details"]["choices"])
        assert set(call["instead_of"]) <= set(trial["details"]["choices"])
        assert call["worse"] >= 0
    told = nas(home, "solve", "tiny", "--budget", "parameters=80%,memory=99%").stdout
    assert re.search(r"parameters \(1 % of its limit\) would lower the predicted KL by [\d.e-]+", told)
    assert "memory does not bind" in told
    closest = explained["close_calls"][0]
    assert f"close call: {', '.join(closest['choices'])} in place of {closest['instead_of'][0]}" in told


def test_a_larger_budget_never_scores_worse(copy: Path) -> None:
    plot = copy / "front.svg"
    asked = ("pareto", "tiny", "--cost", "parameters", "--points", "6", "--plot", plot, "--json")
    front = _json(nas(copy / "home", *asked))
    assert plot.is_file()
    assert len(front) >= 3
    costs, scores = [point["cost"] for point in front], [point["score"] for point in front]
    assert costs == sorted(costs)
    assert scores == sorted(scores, reverse=True)
    assert (front[-1]["score"], front[-1]["of_parent"]) == (0, 1)


def test_trials_are_asked_for_by_their_columns(copy: Path) -> None:
    home = copy / "home"
    for budget in ("parameters=90%", "parameters=85%"):
        _json(nas(home, "solve", "tiny", "--budget", budget, "--json"))
    by_size = _json(nas(home, "trials", "tiny", "--sort", "predicted_parameters", "--json"))
    sizes = [trial["predicted_parameters"] for trial in by_size]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    built = _json(nas(home, "trials", "--where", "kl is not None and latency_ratio < 5", "--json"))
    assert [trial["id"] for trial in built] == [1]
    table = nas(home, "trials", "tiny", "--sort", "score", "--descending", "--limit", "2").stdout
    assert len(re.findall(r"mip", table)) == 2


def test_a_trial_is_shown_layer_by_layer(finished: Path) -> None:
    shown = _json(nas(finished / "home", "show", "1", "--json"))
    (trial,) = rows(finished / "home", "trial")
    assert sum(layer["score"] for layer in shown["layers"]) == pytest.approx(trial["score"])
    assert " ".join(layer["child"] for layer in shown["layers"]) == trial["architecture"].replace("+", " ")
    (search,) = rows(finished / "home", "search")
    fixed = json.loads(search["parent_costs"])["fixed"]["parameters"]
    assert sum(layer["parameters"] for layer in shown["layers"]) + fixed == trial["predicted_parameters"]


def _logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found


def test_exports_load_again_and_are_the_child(here: Here, finished: Path, tmp_path: Path) -> None:
    home = finished / "home"
    (trial,) = rows(home, "trial")
    child = load_child(child_file(home, trial["child_key"])).eval()
    ids = torch.arange(3, 35).view(1, -1)
    with torch.no_grad():
        expected = child(ids).logits
    for format in ("hf", "decilm"):
        out = tmp_path / format
        told = _json(here(home, "export", "1", "--format", format, "--out", out, "--json"))
        assert (told["folder"], told["format"]) == (str(out), format)
        torch.testing.assert_close(_logits(out, ids), expected, atol=1e-4, rtol=0)
        assert AutoTokenizer.from_pretrained(out)("def f(x):")["input_ids"]


def test_a_report_opens_offline(here: Here, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert here(finished / "home", "report", "tiny", "--out", out).returncode == 0
    page = out.read_text()
    (trial,) = rows(finished / "home", "trial")
    assert "tiny" in page
    assert f"{trial['kl']:.4f}" in page
    assert not re.search(r"""(src|href)=["']https?://|@import|url\(["']?http""", page)


def test_an_architecture_that_was_built_is_that_child_for_another_budget(
    copy: Path, here: Here, tmp_path: Path
) -> None:
    home = copy / "home"
    (built,) = rows(home, "trial")
    asked = f"parameters={built['predicted_parameters'] / 1e6 + 1e-6:.6f} M"
    trial = _json(here(home, "solve", "tiny", "--budget", asked, "--json"))
    assert trial["id"] != built["id"]
    assert trial["architecture"] == built["architecture"]
    for column in ("kl", "lm_loss", "latency_s", "throughput", "heal_tokens", "kl_before_heal"):
        assert trial[column] == built[column] is not None
    assert trial["heal_curve"] == json.loads(built["heal_curve"])
    assert trial["heal_curve"][-1][0] == trial["heal_tokens"]
    _json(here(home, "export", str(trial["id"]), "--out", tmp_path / "out", "--json"))
    # The child stays: the trial that was built is it.
    told = _json(here(home, "trials", "--ids", str(trial["id"]), "--delete", "--yes", "--json"))
    assert (told["deleted"], told["files"]) == ([trial["id"]], [])
    assert [row["id"] for row in rows(home, "trial")] == [built["id"]]


def test_init_prints_a_job_for_the_embedded_parent(tmp_path: Path) -> None:
    printed = nas(tmp_path, "init").stdout
    (tmp_path / "job.yaml").write_text(printed)
    request = config.load(tmp_path / "job.yaml")
    assert request.parent == EMBEDDED
    assert request.data.train == "stdlib"
    assert printed == config.template()


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"ffn": ["ffn100000"]}}, r"ffn100000.*\d+"),
        ({"space": {"attention": ["kv3"]}}, r"space\.attention: kv3: 3 KV heads do not divide"),
        ({"space": {"attention": ["kv30%"]}}, r"space\.attention: kv30% of the parent's \d+ KV heads is"),
        ({"distil": {"tokens": 64}}, r"distil: unknown key; did you mean 'distill'\?"),
        ({"scenario": {"bacth": 2}}, r"scenario\.bacth: unknown key; did you mean 'batch'\?"),
        ({"data": {"train": ["no such file.txt"]}}, r"data\.train.*no such file\.txt does not exist"),
        ({"data": {"score_tokens": 10_000_000}}, r"data\.score_tokens 10,000,000.*give more text"),
        ({"budget": {"latency": "200%"}}, r"budget\.latency: 200%.*limits nothing"),
        ({"parent": "."}, r"parent: .* holds no config\.json"),
        ({"space": {"ffn": ["linear"]}, "export": {"format": "decilm"}}, r"L0\.attention=linear: DeciLM engines"),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused_with_its_place(
    mistake: Mistake, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    assert re.search(said, mistake(["search", job(tmp_path, **changed)]))


def test_empty_text_is_refused(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    error = mistake(["search", job(tmp_path, data={"train": ["empty.txt"]})])
    assert re.search(r"data\.train: there is no text in .*empty\.txt", error)


def test_a_folder_that_is_not_empty_is_refused_before_any_work(mistake: Mistake, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    error = mistake(["search", job(tmp_path, export={"out": str(taken)})])
    assert error == f"error: export.out: {taken} exists and is not empty; remove it, or name another folder"
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
    assert rows(tmp_path / "home", "search") == []


def test_nan_among_the_parents_weights_is_found_before_any_work(mistake: Mistake, tmp_path: Path) -> None:
    parent = shutil.copytree(parent_folder(), tmp_path / "parent", copy_function=shutil.copy)
    weights = load_file(parent / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name][3, 5] = float("nan")
    (parent / "model.safetensors").unlink()
    save_file(weights, parent / "model.safetensors", metadata={"format": "pt"})
    error = mistake(["search", job(tmp_path, parent=str(parent))])
    assert f"{name} holds NaN" in error


def test_more_tokens_than_a_parent_has_positions_are_refused_before_any_work(mistake: Mistake, tmp_path: Path) -> None:
    parent = shutil.copytree(parent_folder(), tmp_path / "parent", copy_function=shutil.copy)
    vocabulary = json.loads((parent / "config.json").read_text())["vocab_size"]
    model = random_model(FAMILIES["gpt2"](vocab_size=vocabulary, max_position_embeddings=96))
    model.save_pretrained(parent)
    asked = {"prompt_tokens": 90, "generated_tokens": 8}
    error = mistake(["search", job(tmp_path, parent=str(parent), scenario=asked)])
    assert error == "error: scenario: 97 tokens are more than the 96 the parent has positions for"
    error = mistake(["search", job(tmp_path, parent=str(parent), data={"sequence_length": 128})])
    assert error == "error: data.sequence_length: 128 tokens are more than the 96 the parent has positions for"


def test_a_database_from_the_future_is_left_alone(mistake: Mistake, copy: Path) -> None:
    path = copy / "home/nas.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE puzzle_nas_version SET version_num = '9999'")
    connection.close()
    error = mistake(["trials", "--db", path])
    assert re.search(r"revision 9999, written by a newer puzzle-nas.*upgrade", error)


def test_a_budget_out_of_reach_is_told_with_what_is_in_reach(mistake: Mistake, finished: Path) -> None:
    db = finished / "home/nas.db"
    error = mistake(["solve", "tiny", "--budget", "memory=1 KiB", "--db", db])
    reach = re.search(
        r"memory 1\.00 KiB: the least reachable is ([\d.]+) (KiB|MiB) \(([\d.]+)% of the parent's\)", error
    )
    assert reach, error
    # The limit it calls reachable is: a hundredth more, for the rounding of what is printed.
    share = float(reach[3]) * 1.01
    found = nas(finished / "home", "solve", "tiny", "--budget", f"memory={share}%", "--db", _apart(db))
    assert found.returncode == 0, found.stderr
    assert mistake(["solve", "tiny", "--budget", f"memory={share * 0.97}%", "--db", _apart(db)])


def _apart(db: Path) -> Path:
    """A copy of a database, to add trials to."""
    return Path(shutil.copy(db, db.parent.parent / "apart.db"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["solve", "tinny", "--budget", "latency=50%"], r"no search 'tinny'; there is tiny"),
        (["solve", "tiny", "--budget", "latency=50"], r"latency"),
        (["pareto", "tiny", "--cost", "memry"], r"'memry' is not a cost; did you mean 'memory'"),
        (["pareto", "tiny", "--plot", "front.pdf"], r"front\.pdf"),
        (["solve", "tiny", "--budget", "parameters=90%", "--metric", "lm_loss", "--refine", "5"], r"sums of KL"),
        (["show", "77"], r"no trial has the id 77"),
        (["trials", "--sort", "kll"], r"did you mean kl\?"),
        (["export", "1", "--format", "onnx", "--out", "nowhere"], r"onnx.*hf"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_answered_in_a_line(
    mistake: Mistake, copy: Path, arguments: list[str], said: str
) -> None:
    assert re.search(said, mistake([*arguments, "--db", str(copy / "home/nas.db")]))


def test_a_trial_that_was_never_built_cannot_be_exported(mistake: Mistake, copy: Path, tmp_path: Path) -> None:
    trial = _json(nas(copy / "home", "solve", "tiny", "--budget", "parameters=90%", "--json"))
    error = mistake(["export", str(trial["id"]), "--out", tmp_path / "out", "--db", copy / "home/nas.db"])
    assert "was never built in this home; build it with `nas build`" in error
    assert not (tmp_path / "out").exists()


def test_the_installed_command_says_it_in_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"parent": "embedded", "budgte": {"latency": "60%"}}))
    done = nas(tmp_path, "search", tmp_path / "job.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
