"""Impossible jobs are refused before the parent is loaded, Ray is started or anything is written."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import LFS_POINTER, configure, rewrite, saved
from searches import environment, job, the_error

from cost_models.hardware import total_bytes
from nas.job import config
from nas.job.units import format_quantity
from nas.stages.preflight import check, check_submitted

Mistake = Callable[[Sequence[str | Path]], str]
TINY = {"batch": 2, "prompt_tokens": 32, "generated_tokens": 1}


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Two layers of four KV heads, 64 tokens and 64 positions."""
    return saved(tmp_path / "parent")


def asked(folder: Path, parent: Path, **changed: Any) -> config.Request:
    """A request of small sizes."""
    return config.load(job(folder, parent=str(parent), **{"scenario": TINY} | changed))


def refused(request: config.Request) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        check(request)
    return str(error.value)


def test_a_job_that_can_end_well_passes(parent: Path, tmp_path: Path) -> None:
    check(asked(tmp_path, parent))


def test_positions_of_a_llama_layout_are_counted(parent: Path, tmp_path: Path) -> None:
    said = refused(asked(tmp_path, parent, data={"sequence_length": 65}))
    assert said == "data.sequence_length: 65 tokens are more than the 64 the parent has positions for"
    # The last token that is generated is not read any more.
    check(asked(tmp_path, parent, scenario=TINY | {"prompt_tokens": 60, "generated_tokens": 5}))
    said = refused(asked(tmp_path, parent, scenario=TINY | {"prompt_tokens": 60, "generated_tokens": 6}))
    assert said == "scenario: 65 tokens are more than the 64 the parent has positions for"


def test_no_positions_at_all_are_a_mistake_of_the_configuration(parent: Path, tmp_path: Path) -> None:
    configure(parent, max_position_embeddings=-1)
    said = refused(asked(tmp_path, parent))
    assert said == "the parent's config.json says that it has -1 positions; correct it"


def test_scaled_positions_count(parent: Path, tmp_path: Path) -> None:
    configure(parent, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    check(asked(tmp_path, parent, data={"sequence_length": 128}))
    assert "more than the 128 the parent" in refused(asked(tmp_path, parent, data={"sequence_length": 129}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"space": {"attention": ["kv3"]}},
            "space.attention: kv3: 3 KV heads do not divide the parent's 4; use kv1, kv2, kv4",
        ),
        ({"space": {"attention": ["kv30%"]}}, "kv30% of the parent's 4 KV heads is 1.2"),
        ({"space": {"ffn": ["ffn100"]}}, "ffn100"),
        ({"space": {"ffn": ["no_such4"]}}, "no_such"),
        ({"distill": {"kinds": {"nothing": {"tokens": 64}}}}, "distill.kinds.nothing"),
        (
            {"export": {"format": "decilm"}, "space": {"ffn": ["linear"], "attention": ["skip"]}},
            "DeciLM engines have no",
        ),
        ({"scenario": TINY | {"device": "mps"}}, "scenario.device: device 'mps': torch"),
        ({"scenario": TINY | {"threads": 4096}}, "scenario.threads: 4,096 threads, but this process may use"),
        ({"scenario": TINY | {"batch": 10**23}}, "scenario: takes at least"),
        ({"scenario": TINY | {"batch": 10**13}}, "scenario: takes at least"),
        ({"data": {"distillation_tokens": 10**16}, "distill": {"batch": 10**15}}, "distill.batch: takes at least"),
        (
            {"data": {"distillation_tokens": 10**16}, "heal": {"batch": 10**15, "tokens": None}},
            "heal.batch: takes at least",
        ),
        ({"data": {"score_tokens": 10**13}}, "data.score_tokens: takes at least"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_key(
    changed: dict[str, Any], said: str, parent: Path, tmp_path: Path
) -> None:
    assert said in refused(asked(tmp_path, parent, **changed))


def test_memory_is_said_in_bytes_needed_and_free(parent: Path, tmp_path: Path) -> None:
    said = refused(asked(tmp_path, parent, scenario=TINY | {"batch": 10**12}))
    # 2 layers x 2 x 4 heads of 8 x 33 tokens x 4 bytes, of each of 10^12 sequences.
    cache_bytes = 2 * 2 * 4 * 8 * 33 * 4 * 10**12
    assert f"{cache_bytes / 2**40:.0f} TiB of cache" in said
    assert f"and this machine's cpu has {format_quantity('memory', total_bytes(torch.device('cpu')))}" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")
def test_cuda_on_a_machine_without(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cuda = TINY | {"device": "cuda"}
    assert "scenario.device: device 'cuda': torch" in refused(asked(tmp_path, parent, scenario=cuda))
    assert "ray.gpus_per_task: 1 a task, and torch" in refused(asked(tmp_path, parent, ray={"gpus_per_task": 1}))
    # A cluster's nodes may have it.
    check(asked(tmp_path, parent, scenario=cuda, ray={"address": "127.0.0.1:6379"}))


def test_absurd_sizes_are_refused_on_any_cluster(parent: Path, tmp_path: Path) -> None:
    huge = asked(tmp_path, parent, scenario=TINY | {"batch": 10**23}, ray={"address": "127.0.0.1:6379"})
    assert "no node has 1024 TiB" in refused(huge)


def test_a_weight_that_float16_cannot_hold(parent: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(parent, lambda weights: weights[name].view(-1)[0].fill_(1e5))
    check(asked(tmp_path, parent))
    said = refused(asked(tmp_path, parent, scenario=TINY | {"dtype": "float16"}))
    assert said.startswith(f"{parent / 'model.safetensors'}: {name} holds 100000, and float16 ends at 65504")


@pytest.mark.parametrize(
    ("damage", "asked", "expected"),
    [
        ({}, {"data": {"sequence_length": 65}}, "data.sequence_length: 65 tokens are more than the 64"),
        ({"vocab_size": 60}, {}, "lm_head.weight is [64, 32], and config.json says vocab_size: 60"),
        ({"num_hidden_layers": 1}, {}, "counts 1 layers, and the weights beside it hold 2"),
        (None, {}, "model.safetensors: is a git-lfs pointer"),
    ],
    ids=["positions", "vocabulary", "layers", "pointer"],
)
def test_files_are_looked_at_before_torch_is_loaded(
    damage: dict[str, int] | None, asked: dict[str, Any], expected: str, parent: Path, tmp_path: Path
) -> None:
    if damage is None:
        (parent / "model.safetensors").write_text(LFS_POINTER)
    else:
        configure(parent, **damage)
    written = job(tmp_path, parent=str(parent), **asked)
    script = """
import json, sys
from nas.cli.main import app
try:
    app(["search", sys.argv[1]])
except SystemExit as end:
    print(json.dumps([end.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", script, str(written)], capture_output=True, text=True, env=environment(home)
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 1
    assert expected in the_error(done.stderr)
    assert {"torch", "ray", "transformers", "sqlalchemy"} & set(modules) == set()
    assert not home.exists()


def test_the_command_says_it_in_a_line(mistake: Mistake, parent: Path, tmp_path: Path) -> None:
    written = job(tmp_path, parent=str(parent), space={"attention": ["kv3"]}, scenario=TINY)
    said = mistake(["search", written])
    assert said.startswith("error: space.attention: kv3: 3 KV heads do not divide")
    assert "\n" not in said
    assert not (tmp_path / "home").exists()


# --- code of a checkpoint's -----------------------------------------------------------------------------------------


def test_a_submitted_job_runs_no_code(mistake: Mistake, parent: Path, tmp_path: Path) -> None:
    written = job(tmp_path, parent=str(parent), allow_remote_code=True, scenario=TINY)
    said = mistake(["submit", written, "--address", "http://127.0.0.1:1"])
    assert said.startswith("error: allow_remote_code: a submitted job runs no code")


def test_a_submitted_jobs_parent_is_looked_at_where_it_is_seen(parent: Path, tmp_path: Path) -> None:
    check_submitted(asked(tmp_path, parent, scenario=TINY | {"device": "cuda"}))
    configure(parent, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match="quantization_config"):
        check_submitted(asked(tmp_path, parent))


def test_remote_code_is_off_unless_asked_for(parent: Path, tmp_path: Path) -> None:
    assert asked(tmp_path, parent).allow_remote_code is False
    assert asked(tmp_path, parent, allow_remote_code=True).allow_remote_code is True


# --- a parent that is gone ------------------------------------------------------------------------------------------


def without_its_parent(copy: Path) -> Path:
    """A finished search in whose rows the parent's folder is one that is gone."""
    gone = copy / "gone"
    with sqlite3.connect(copy / "home/nas.db") as connection:
        (request,) = connection.execute("SELECT request FROM search").fetchone()
        changed = json.loads(request) | {"parent": str(gone)}
        connection.execute("UPDATE search SET parent = ?, request = ?", (str(gone), json.dumps(changed)))
    connection.close()
    written = yaml.safe_load((copy / "job.yaml").read_text())
    (copy / "job.yaml").write_text(yaml.safe_dump(written | {"parent": str(gone)}))
    return gone


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "1", "--out", "OUT"],
        ["search", "JOB"],
        ["submit", "JOB"],
        ["compare", "tiny", "--evaluations", "2", "--seeds", "0"],
        ["solve", "tiny", "--budget", "parameters=70%", "--refine", "2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_parent_that_is_gone_is_named(arguments: list[str], here: Any, copy: Path) -> None:
    gone = without_its_parent(copy)
    places = {"OUT": str(copy / "out"), "JOB": str(copy / "job.yaml")}
    done = here(copy / "home", *[places.get(argument, argument) for argument in arguments])
    assert done.returncode == 1
    said = the_error(done.stderr)
    assert str(gone) in said
    assert "Repo id" not in said
    assert "\n" not in said
    assert not (copy / "out").exists()


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nas.cli.main", "search", str(job(tmp_path, parent="someone/absent"))],
        env=environment(tmp_path / "home") | {"HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert the_error(done.stderr).startswith("error: someone/absent: is no folder here, and the hub gives no such")
