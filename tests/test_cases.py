"""Inputs that failed for users of such tools, each with what is right: refused in a line that names the file and the
remedy, or carried through to the right answer. The inputs lie beside the repository; where they do not, nothing runs.
"""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from searches import command, environment, rows
from transformers import AutoModelForCausalLM

CASES = SHARED / "cases"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason="no cases beside the repository"),
]

REFUSED = {
    "bnb_parent": ("config.json", "bitsandbytes"),
    "config_vocab_stale": ("config.json", "520", "512"),
    "dataset_latin1": ("latin1.jsonl", "line", "UTF-8"),
    "dataset_truncated": ("truncated.jsonl", "line"),
    "fp16_cannot_hold_it": ("float16", "model.layers"),
    "gptq_parent": ("config.json", "gptq"),
    "lfs_pointer": ("model.safetensors", "git lfs pull"),
    "lfs_pointer_bin": ("pytorch_model.bin", "git lfs pull"),
    "longer_than_the_context": ("sequence_length", "2048", "512"),
    "modelopt_fp8_scales_dropped": ("modelopt",),
    "more_layers_than_config": ("num_hidden_layers", "model.layers.3"),
    "nemotron_nas_parent": ("nemotron-nas",),
    "pad_token_out_of_range": ("pad_token_id", "512"),
    "per_layer_config_llama": ("config.json", "per_layer_config"),
    "ray_address_stale": ("RAY_ADDRESS", "127.0.0.1:6399"),
    "sentencepiece_only": ("tokenizer.model", "sentencepiece"),
    "tokenizer_lfs_pointer": ("tokenizer.json", "git lfs pull"),
    "tokenizer_too_new": ("tokenizer.json",),
    "truncated_weights": ("model.safetensors",),
}
"""The words in the one line of the error, before any work is done."""
FINISHED = (
    "dataset_save_to_disk",
    "decilm_llama3_rope",
    "generation_settings_invalid",
    "jsonl_as_text",
    "odd_paths",
    "parent_folder_gone",
    "rope_old_llama3",
    "table_float_sum",
    "table_replacement_list",
    "tmpdir_too_long",
)
"""Carried through; each has a test below."""


@pytest.fixture
def laid(tmp_path: Path) -> Path:
    """The cases as they lie beside each other, to run in: their relative paths hold, and nothing is written to them."""
    for folder in ("parents", "text"):
        (tmp_path / folder).symlink_to((SHARED / folder).resolve())
    shutil.copytree(CASES, tmp_path / "cases")
    return tmp_path / "cases"


def run(
    folder: Path, *arguments: str, home: Path | None = None, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """The command, in the case's folder, with a home of its own."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(home or folder / "home") | variables,
        capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def searched(folder: Path, **given: str) -> "subprocess.CompletedProcess[str]":
    done = run(folder, "search", "job.yaml", **given)
    assert done.returncode == 0, done.stderr
    return done


def check_refused(done: "subprocess.CompletedProcess[str]", words: Sequence[str], home: Path) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1] == line, "the error is one line, the last"
    missing = [word for word in words if word.lower() not in line.lower()]
    assert not missing, line
    assert "trust_remote_code" not in line
    if (home / "nas.db").is_file():
        assert not rows(home, "distillation"), "work was done before it was refused"


def exported(home: Path) -> Path:
    (folder,) = (home / "exports").glob("*/*")
    return folder


def test_every_case_is_walked() -> None:
    folders = {folder.name for folder in CASES.iterdir() if folder.is_dir() and not folder.name.startswith("_")}
    assert folders == {*REFUSED, *FINISHED}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_in_a_line(laid: Path, name: str) -> None:
    variables = {"RAY_ADDRESS": "127.0.0.1:6399"} if name == "ray_address_stale" else {}
    done = run(laid / name, "search", "job.yaml", **variables)
    check_refused(done, REFUSED[name], laid / name / "home")


def test_checkpoint_code_is_not_offered_on_a_terminal(laid: Path) -> None:
    """Where somebody sits who would say yes."""
    folder = laid / "nemotron_nas_parent"
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        command("search", "job.yaml"), cwd=folder, env=environment(folder / "home"), stdin=inside, stdout=inside,
        stderr=inside, start_new_session=True,
    ) as running:  # fmt: skip
        os.close(inside)
        os.write(terminal, b"y\n" * 3)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # The other end is closed.
            pass
        assert running.wait(timeout=120) == 1
    os.close(terminal)
    assert b"[y/N]" not in shown
    assert b"nemotron-nas" in shown
    assert not list(folder.rglob("CODE_RAN"))


@pytest.mark.parametrize("name", ["dataset_save_to_disk", "jsonl_as_text"])
def test_text_is_read_for_what_it_is(laid: Path, name: str) -> None:
    done = searched(laid / name)
    assert '{"id"' not in done.stdout, "the child speaks text, not JSON"


def test_a_decilm_folder_is_the_child(laid: Path) -> None:
    """Its logits, computed by hand in float64 with frequencies from the published formula."""
    folder = laid / "decilm_llama3_rope"
    searched(folder)
    decilm = exported(folder / "home")
    trial = str(rows(folder / "home", "trial")[-1]["id"])
    assert run(folder, "export", trial, "--format", "hf", "--out", str(folder / "hf")).returncode == 0
    checked = subprocess.run(
        [sys.executable, str(folder / "check.py"), str(decilm), str(folder / "hf")],
        capture_output=True, text=True, timeout=300, check=True, env=environment(folder / "home"),
    ).stdout  # fmt: skip
    difference = float(checked.partition("max|d| ")[2].split()[0])
    assert difference < 5e-5, checked


def test_generation_settings_that_transformers_refuses_are_left_out(laid: Path) -> None:
    """Without do_sample the parent's temperature and top_p do nothing, so the child generates alike without them."""
    folder = laid / "generation_settings_invalid"
    done = searched(folder)
    written = json.loads((exported(folder / "home") / "generation_config.json").read_text())
    assert written["eos_token_id"] == 2
    assert not {"temperature", "top_p", "do_sample"} & written.keys()
    for name in ("temperature: 0.9 is left out", "top_p: 0.6 is left out"):
        assert name in done.stdout


def test_odd_paths(laid: Path) -> None:
    """Percent signs, spaces, question marks and hashes, in the home and in the parent's name."""
    folder = laid / "odd_paths"
    (folder / "parent").rename(folder / "mo del%s")
    (folder / "job.yaml").write_text((folder / "job.yaml").read_text().replace("./parent", "./mo del%s"))
    home = folder / "h%20o me?#é"
    done = run(folder, "search", "job.yaml", home=home)
    assert done.returncode == 0, done.stderr
    for words in (["compare", "job", "--evaluations", "2", "--seeds", "1"], ["trials"]):
        done = run(folder, *words, home=home)
        assert done.returncode == 0, done.stderr
    assert list((home / "reports").glob("*.html"))


def test_a_parent_that_is_gone_is_named(laid: Path) -> None:
    folder = laid / "parent_folder_gone"
    searched(folder)
    card = (exported(folder / "home") / "README.md").read_text()
    assert str(folder) not in card, "the hub refuses a local path for base_model"
    (folder / "parent").rename(folder / "elsewhere")
    for words in (["export", "1", "--out", "X"], ["search", "job.yaml"]):
        done = run(folder, *words)
        assert "Repo id" not in done.stderr
        check_one_line(done, [str(folder / "parent")])


def check_one_line(done: "subprocess.CompletedProcess[str]", words: Sequence[str]) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr.splitlines()[-1] for word in words), done.stderr


def test_rotary_settings_in_the_old_spelling(laid: Path) -> None:
    """The parent in use has the logits that transformers' own class has."""
    from blocklib.parent import load_parent

    folder = laid / "rope_old_llama3"
    searched(folder)
    ids_BT = torch.arange(64).view(2, 32)
    stock = AutoModelForCausalLM.from_pretrained(folder / "parent", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(stock(ids_BT).logits, load_parent(str(folder / "parent")).model(ids_BT).logits)


@pytest.mark.parametrize(
    ("name", "objective", "budget", "total", "cost", "chosen"),
    [
        ("table_float_sum", "metrics.kl", "stats.ms=0.3", 0.0, ("stats.ms", 0.3), ["full"] * 3),
        (
            "table_replacement_list", "metrics.kl_div_loss", "stats.memory_mib=700", 0.25, ("stats.memory_mib", 660),
            ["full", "fused"],
        ),
    ],
)  # fmt: skip
def test_tables_of_other_tools(
    laid: Path, name: str, objective: str, budget: str, total: float, cost: tuple[str, float], chosen: list[str]
) -> None:
    asked = ["solve", "--table", "table.json", "--objective", objective, "--budget", budget, "--json"]
    done = run(laid / name, *asked)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["total"] == pytest.approx(total)
    assert answer["costs"][cost[0]] == pytest.approx(cost[1])
    # A replacement's key is a number; `block_repr` says what it is.
    table = json.loads((laid / name / "table.json").read_text())
    names = [choice["option"] for choice in answer["choices"]]
    assert [table[name]["block_repr"] if name in table else name for name in names] == chosen


def test_a_long_temporary_folder(laid: Path, tmp_path: Path) -> None:
    """Ray's sockets have names of 107 bytes at most; a folder of 103 characters leaves them four."""
    folder = laid / "tmpdir_too_long"
    long = tmp_path / ("t" * (103 - len(str(tmp_path)) - 1))
    assert len(str(long)) == 103
    long.mkdir()
    searched(folder, TMPDIR=str(long))
