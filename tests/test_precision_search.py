"""Searches that choose precisions: alone, and beside shapes; their child in a GGUF file; every question about them."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from searches import Here, files, job, nas, rows, started, stop_group, the_error, wait_for

from blocklib.block import Architecture, Choice
from blocklib.formats.gguf import gguf_bytes, gguf_fixed_bytes
from blocklib.parent import load_parent
from db.store import Store
from nas.job.request import EMBEDDED, checkpoint_of
from nas.job.units import parse_budget
from nas.solve.solve import measured, solve
from nas.stages.real_values import Reality

pytest.importorskip("xllamacpp")
pytest_plugins = ["databases"]
pytestmark = pytest.mark.usefixtures("ray_here")

PRECISIONS = ["q8_0", "q5_0", "q4_0"]
BITS_ONLY: dict[str, Any] = {"attention": [], "ffn": [], "fuse": None, "drop_blocks": False, "precision": PRECISIONS}
BOTH: dict[str, Any] = BITS_ONLY | {"ffn": ["50%"], "drop_blocks": True}
HOW: dict[str, Any] = {
    "data": {"distillation_tokens": 16384},
    "scenario": {"batch": 1, "prompt_tokens": 16, "generated_tokens": 4, "threads": 1},
    "budget": {"file": "70%"},
    # Times are not limited, so they may be rough.
    "measure": {"tolerance": 0.5, "time_limit": "0.2 s"},
    "distill": {"tokens": 0},
    "heal": None,
    "export": {"format": "gguf"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished search of precisions alone, called bits."""
    folder = tmp_path_factory.mktemp("bits")
    done = nas(folder / "home", "search", job(folder, name="bits", space=BITS_ONLY, **HOW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stored as" in done.stdout
    return folder / "home"


def test_the_file_is_what_the_architecture_says(home: Path) -> None:
    (trial,) = rows(home, "trial")
    architecture = Architecture.parse(trial["architecture"])
    (tables,) = architecture.tables
    precisions = {part.precision for choice in architecture.choices() for part in choice.parts}
    assert len(precisions) > 1, "one precision everywhere is no choice"
    (path,) = Path(trial["child_path"]).glob("*.gguf")
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for index, (_, block) in enumerate(architecture.placed()):
        stored = (file[f"blk.{index}.{name}.weight"].tensor_type.name.lower() for name in ("attn_q", "ffn_gate"))
        assert tuple(stored) == (block.attention.precision, block.ffn.precision)
    shape = load_parent(json.loads(rows(home, "search")[0]["request"])["parent"]).shape
    promised = sum(gguf_bytes(choice, shape, "f16") for choice in architecture.choices() if not choice.is_table)
    promised += gguf_fixed_bytes(shape, tables.precision, is_chosen=True)
    assert sum(tensor.n_bytes for tensor in file.values()) == promised == trial["file_bytes"]
    whole = sum(gguf_bytes(choice, shape, "q8_0") for choice in architecture.unrounded.choices())
    assert promised <= 0.7 * (whole + gguf_fixed_bytes(shape, "q8_0"))


def test_a_second_run_does_nothing(home: Path) -> None:
    before = files(home), [row["work_done"] for row in rows(home, "stage")]
    done = nas(home, "search", home.parent / "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    more = [row["work_done"] for row in rows(home, "stage")][len(before[1]) :]
    assert files(home) == before[0]
    assert not any(more)


def test_killed_while_it_rounds_it_ends_with_the_same(home: Path, tmp_path: Path) -> None:
    path = job(tmp_path, name="bits", space=BITS_ONLY, **HOW)
    running = started(tmp_path / "home", "search", path)
    wait_for(running, "round weights")
    stop_group(running, signal.SIGKILL)
    assert not rows(tmp_path / "home", "score")
    done = nas(tmp_path / "home", "search", path)
    assert done.returncode == 0, done.stdout + done.stderr
    for table, names in (("score", ("key", "kl")), ("trial", ("architecture", "kl", "kl_before_heal"))):
        here, there = ([[row[name] for name in names] for row in rows(at, table)] for at in (tmp_path / "home", home))
        assert here == there


def test_precisions_beside_shapes_are_no_worse_than_alone_and_both_beat_one_type(home: Path) -> None:
    """In real KL to the parent, at the size of the file with one type throughout. Nothing is timed for it. The child of
    both is healed, and rounded afterwards."""
    done = nas(home, "search", job(home.parent, name="both", space=BOTH, **HOW | {"heal": {"tokens": 2048}}))
    assert done.returncode == 0, done.stdout + done.stderr
    (healed,) = [row for row in rows(home, "trial") if row["heal_tokens"]]
    (child,) = (home / "children").glob(f"{healed['child_key']}*")
    kept = {name: tensor.dtype for name, tensor in load_file(child).items() if name.startswith("stored:")}
    assert len(kept) >= 7 * (len(healed["architecture"].split()) - 2)
    assert set(kept.values()) == {torch.uint8}
    with Store.open(home / "nas.db") as store:
        known = {name: measured(store, store.find_search(name)) for name in ("bits", "both")}
        own = Architecture.parse(known["both"].search.parent_architecture).blocks[0]
        for precision in PRECISIONS[1:]:
            attention, ffn = str(own).split("+")
            block = f"{attention}@{precision}+{ffn}@{precision}"
            uniform = Architecture.parse(" ".join([block] * known["both"].layers) + f" tables@{precision}")
            size = sum(known["both"].costs[choice].weight_bytes for choice in uniform.choices())
            budget = parse_budget(f"file={size} B")
            chosen = [str(known[name].architecture(solve(known[name], budget).options)) for name in ("both", "bits")]
            with Reality(store, known["both"].search, Console(quiet=True)) as reality:
                kls = dict(reality.kl([*chosen, str(uniform)]))
            both, bits, one_type = (kls[text] for text in (*chosen, str(uniform)))
            assert both <= 1.02 * bits, precision
            assert bits <= one_type, precision


def test_a_checked_answer_stands_on_measured_scores_alone(home: Path, here: Here) -> None:
    """Those it was first chosen by are said to be off by so much. Nothing is rounded or timed for it."""
    path = job(home.parent, name="checked", space=BITS_ONLY, score={"rounded": "checked"}, **HOW)
    before = {row["key"] for row in rows(home, "score")}
    done = here(home, "search", path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"checked (\d+) predicted scores, those of \d+ answers: off by ([\d.]+)% in the mean", done.stdout)
    assert told is not None, done.stdout
    new = {row["key"]: row for row in rows(home, "score") if row["key"] not in before}
    assert len(new) == int(told[1])
    assert 0 < float(told[2]) < 100
    with Store.open(home / "nas.db") as store:
        search = store.find_search("checked")
        known = {one.option.choice: one.option.score_key for one in store.options(search.id)}
        predicted = {one.option.choice: one.option.score_key for one in store.options(store.find_search("bits").id)}
        (trial,) = store.trials(search.id)
    answer = [str(choice) for choice in Architecture.parse(trial.architecture).choices()]
    changed = [choice for choice in answer if known[choice] != predicted[choice]]
    assert changed
    assert {known[choice] for choice in changed} <= new.keys()
    kept = [Choice.parse(choice) for choice in answer if choice not in changed]
    assert all(choice.is_table or choice.precision == "q4_0" for choice in kept), "these are measured at once"
    scores = {row["key"]: row["kl"] for row in rows(home, "score")}
    assert trial.score == pytest.approx(sum(scores[known[choice]] for choice in answer if known[choice]))
    again = here(home, "search", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "predicted scores" not in again.stdout
    assert {row["key"] for row in rows(home, "score")} == before | new.keys()


@pytest.mark.slow
def test_a_parent_on_the_grid_of_the_coarsest_precision(here: Here, tmp_path: Path) -> None:
    """Weights on q4_0's grid lie on q5_0's, too, and lose nothing in either; so q8_0, the finest, is measured. More
    types in another search change none of it."""
    parent = on_grid(tmp_path / "parent")
    for name, precisions in (("three", PRECISIONS), ("four", [*PRECISIONS, "q5_1"])):
        asked = job(tmp_path, name=name, parent=parent, space=BITS_ONLY | {"precision": precisions}, **HOW)
        done = here(tmp_path / "home", "search", asked)
        assert done.returncode == 0, done.stdout + done.stderr
        with Store.open(tmp_path / "home/nas.db") as store:
            scores = {one.option.choice: one.score.kl for one in store.options(store.find_search(name).id) if one.score}
        stored = [choice for choice in scores if choice.endswith("@q4_0") and not Choice.parse(choice).is_table]
        assert stored
        for choice in stored:
            lost = {precision: scores[choice.replace("q4_0", precision)] for precision in precisions}
            nothing = {precision for precision, kl in lost.items() if kl < 1e-9}
            assert nothing == {"q4_0", "q5_0"}, lost


def on_grid(folder: Path) -> str:
    """The embedded parent, whose layers lie on q4_0's grid."""
    shutil.copytree(checkpoint_of(EMBEDDED), folder)
    config, file = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}))
    weights = load_file(file)
    for name, weight in weights.items():
        if "layers" in name and weight.dim() == 2 and weight.shape[1] % 32 == 0:
            stored = gguf.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q4_0)
            weights[name] = torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q4_0))
    save_file({name: weight.float() for name, weight in weights.items()}, file, {"format": "pt"})
    return str(folder)


def test_the_child_stands_beside_uniform_files(home: Path, here: Here) -> None:
    """As llama.cpp's quantiser writes them; the child is nearer to the parent than the next smaller file."""
    done = here(home, "precisions", "bits", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    models = {row["name"]: row for row in told["models"]}
    assert models.keys() == {"trial 1", *PRECISIONS}
    sizes = [row["file_bytes"] for row in told["models"]]
    assert sizes == sorted(sizes, reverse=True)
    assert models["q8_0"]["kl"] < models["q5_0"]["kl"] < models["q4_0"]["kl"]
    assert models["trial 1"]["kl"] == rows(home, "trial")[0]["kl"] < models["q4_0"]["kl"]
    assert all(row["prefill_tokens_per_s"] > 0 < row["decode_tokens_per_s"] for row in models.values())


def test_predicted_rises_of_the_loss_are_not_minimised(home: Path, here: Here) -> None:
    done = here(home, "solve", "bits", "--budget", "file=80%", "--metric", "lm_loss")
    assert "rises of the loss cannot be predicted; minimise kl" in the_error(done.stderr)


@pytest.mark.parametrize(
    "question",
    [
        ("solve", "bits", "--budget", "file=80%"),
        ("solve", "bits", "--budget", "bits=8"),
        ("pool", "bits", "--budget", "file=75%", "--count", "3"),
        ("pareto", "bits", "--cost", "file", "--points", "4"),
        ("pareto", "bits", "--cost", "latency", "--points", "4", "--only", "precisions"),
        ("solve", "bits", "--budget", "file=75%", "--refine", "6"),
        ("compare", "bits", "--budget", "file=75%", "--evaluations", "4", "--seeds", "1"),
        ("precisions", "bits", "--no-time"),
        ("show", "1"),
        ("costs", "check", "bits", "--children", "2"),
        ("report", "bits"),
    ],
    ids=" ".join,
)
def test_every_question_has_an_answer(
    home: Path, here: Here, question: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(home, *question)
    assert done.returncode == 0, done.stdout + done.stderr


def test_postgresql_holds_the_same_search(home: Path, here: Here, tmp_path: Path, postgresql: str) -> None:
    """The library is there, the rows are not; then questions find all they need."""
    shutil.copytree(home / "library", tmp_path / "home/library")
    search = ("search", job(tmp_path, name="bits", space=BITS_ONLY, **HOW))
    for words in (
        search,
        search,
        ("solve", "bits", "--budget", "bits=8"),
        ("solve", "bits", "--budget", "file=75%", "--refine", "3"),
        ("pareto", "bits", "--cost", "file", "--points", "3"),
        ("compare", "bits", "--budget", "file=75%", "--evaluations", "2", "--seeds", "1"),
    ):
        done = here(tmp_path / "home", *words, "--db", postgresql)
        assert done.returncode == 0, done.stdout + done.stderr
    with Store.open(postgresql) as store:
        found = store.find_search("bits").id
        (first, *_), stages = store.trials(found), store.stages(found)
    assert first.architecture == rows(home, "trial")[0]["architecture"]
    runs = [[stage.work_done for stage in stages if stage.name == name] for name in ("score", "measure")]
    assert all(first > 0 and again == 0 for first, again in runs)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"space": BITS_ONLY | {"precision": ["q8_0", "q4_k"]}}, "q4_k"),
        ({"space": BITS_ONLY | {"precision": ["q9_0"]}}, "did you mean"),
        ({"space": BITS_ONLY, "export": {"format": "hf"}}, "export.format: gguf"),
        ({"space": BITS_ONLY | {"pairs": True}}, "space.pairs"),
    ],
    ids=["rows", "unknown", "format", "pairs"],
)
def test_what_cannot_be_stored_so_is_told_before_any_work(
    changed: dict[str, Any], told: str, here: Here, tmp_path: Path
) -> None:
    done = here(tmp_path / "home", "search", job(tmp_path, **HOW | changed))
    assert told in the_error(done.stderr)
    assert not (tmp_path / "home/library").exists()


def test_layers_trained_through_their_rounding_bring_the_child_nearer(home: Path) -> None:
    """With the library, the scores and the times of the search before, and in as many bytes."""
    with Store.open(home / "nas.db") as store:
        first = store.trials(store.find_search("bits").id, where="kl is not None")[0]
    scored = len(rows(home, "score"))
    trained = {"tokens": 16384, "learning_rate": 1e-3}
    done = nas(home, "search", job(home.parent, name="bits", space=BITS_ONLY, round=trained, **HOW))
    assert done.returncode == 0, done.stdout + done.stderr
    (child,) = [row for row in rows(home, "trial") if row["round_tokens"]]
    assert (child["architecture"], child["round_tokens"]) == (first.architecture, 16384)
    (page,) = (home / "reports").glob(f"{first.search_id}*.html")
    assert "Each of its layers was trained through its rounding on 16.4 k tokens" in page.read_text(encoding="utf-8")
    assert child["kl"] < 0.95 * first.kl
    assert child["file_bytes"] == first.file_bytes
    assert len(rows(home, "score")) == scored
