"""GGUF files as parents: the same model and tokens as the checkpoint that they were made from, or one line that says
why not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import model_of, written

from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.gguf_header import inspect_gguf
from blocklib.parent import load_parent
from nas.errors import JobError
from nas.job import config
from nas.stages.preflight import check_submitted
from nas.text.parent_folder import parent_folder, stored_in

_IDS = torch.arange(40).remainder(64).unsqueeze(0)


@torch.no_grad()
def _largest_difference(file: Path, model: Any) -> float:
    """Between the logits of the parent that a file holds, and those of the model it was written from."""
    parent = load_parent(str(parent_folder(str(file), file.parent / "home")))
    return float((parent.model(_IDS).logits - model(_IDS).logits).abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_file_computes_what_its_model_does(tmp_path: Path, architecture: str, tied: bool) -> None:
    model = model_of(architecture, tie_word_embeddings=tied)

    assert _largest_difference(written(tmp_path / "m.gguf", model), model) < 1e-5


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"type": "yarn", "factor": 4.0, "original_context_length": 16},
        ),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_rope_scaling_is_kept(tmp_path: Path, architecture: str, rope: dict[str, Any], keys: dict[str, Any]) -> None:
    model = model_of(architecture, rope_parameters={"rope_theta": 10000.0, **rope})
    scaling = {f"{architecture}__rope__scaling__{name}": value for name, value in keys.items()}

    assert _largest_difference(written(tmp_path / "m.gguf", model, **scaling), model) < 1e-5
    assert _largest_difference(written(tmp_path / "plain.gguf", model), model) > 1e-3


def _divisors(head_dim: int, theta: float, factor: float, high: float, original: int) -> np.ndarray:
    """As llama.cpp's converter writes them for Llama 3's scaling."""
    found = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original:
            found.append(factor)
        else:
            smooth = (original / wavelength - 1) / (high - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


@pytest.mark.parametrize(("theta", "factor", "high", "original"), [(500000.0, 32.0, 4.0, 8192), (1e4, 8.0, 3.0, 2048)])
def test_the_scaling_of_llama_3_is_told_from_what_it_comes_to(
    tmp_path: Path, theta: float, factor: float, high: float, original: int
) -> None:
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": high, "original_max_position_embeddings": original}  # fmt: skip
    model = model_of(head_dim=64, rope_parameters=rope)
    divisors = {"rope_freqs.weight": _divisors(64, theta, factor, high, original)}
    file = written(tmp_path / "m.gguf", model, tensors=divisors)

    folder = parent_folder(str(file), tmp_path / "home")

    assert json.loads((folder / "config.json").read_text())["rope_parameters"] == pytest.approx(rope)
    assert _largest_difference(file, model) < 1e-4


def test_numbers_are_as_they_were_before_float32_rounded_them(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf", model_of(rms_norm_eps=1e-5), general__name="Some/Model")

    found = json.loads((parent_folder(str(file), tmp_path) / "config.json").read_text())

    assert found["rms_norm_eps"] == 1e-5
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & found.keys()


def test_a_file_is_unpacked_once_and_its_parent_has_one_digest(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf", model_of(), stored="Q4_1")
    said: list[str] = []
    first = parent_folder(str(file), tmp_path / "home", say=said.append)
    moved = file.rename(tmp_path / "renamed.gguf")
    second = parent_folder(str(moved), tmp_path / "home", say=said.append)
    other = parent_folder(str(moved), tmp_path / "elsewhere")

    assert first == second
    assert len(said) == 1
    assert "layers q4_1" in said[0]
    assert load_parent(str(first)).digest == load_parent(str(other)).digest
    assert not list((tmp_path / "home" / "parents").glob(".unpacking*"))


def test_the_stored_precision_is_said(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf", model_of(), stored="Q8_0")

    assert stored_in(str(file)) == ("parent: layers q8_0, head f32, embedding f32",)


def test_half_precision_stays_half(tmp_path: Path) -> None:
    model = model_of().to(torch.bfloat16).float()

    folder = parent_folder(str(written(tmp_path / "m.gguf", model)), tmp_path)

    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_submitted_job_looks_at_the_header_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf", model_of())
    job = tmp_path / "job.yaml"
    job.write_text("parent: m.gguf\nhome: home\ndata: {train: stdlib}\nbudget: {latency: 80%}\n")
    request = config.load(job)

    check_submitted(request)

    assert not (tmp_path / "home").exists()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is cut"):
        check_submitted(request)


def test_a_cut_file_is_told_before_it_is_read(tmp_path: Path) -> None:
    whole = written(tmp_path / "m.gguf", model_of()).read_bytes()
    for length, said in ((0, "is empty"), (100, "is cut within its header"), (len(whole) - 40, r"is cut: .* counts")):
        file = tmp_path / f"{length}.gguf"
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=said):
            inspect_gguf(file)


def test_every_cut_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = written(tmp_path / "m.gguf", model_of()).read_bytes()
    header = len(whole) - sum(
        tensor.end - tensor.start for tensor in inspect_gguf(tmp_path / "m.gguf").tensors.values()
    )
    file = tmp_path / "cut.gguf"
    for length in range(1, header, 37):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            inspect_gguf(file)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"general__architecture": "gemma3"}, UnsupportedModelError, r"'gemma3'; supported.*: llama, qwen2, qwen3"),
        ({"general__architecture": "clip"}, UnsupportedModelError, "'clip'"),
        ({"split__count": 3}, CheckpointError, "one of 3 files.*--merge"),
        ({"tokenizer__ggml__tokens": None}, CheckpointError, "holds no tokenizer"),
        ({"tokenizer__ggml__model": "rwkv"}, CheckpointError, "llama.cpp's 'rwkv'; known here"),
        ({"tokenizer__ggml__pre": "chameleon"}, CheckpointError, "rule 'chameleon'"),
        ({"tokenizer__ggml__pre": None}, CheckpointError, "rule None"),
        ({"llama__expert_count": 8}, UnsupportedModelError, "mixture of experts"),
        ({"llama__rope__dimension_count": 4}, UnsupportedModelError, "part of each head"),
        ({"llama__feed_forward_length": [64, 32]}, CheckpointError, "differ"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, CheckpointError, "epsilon"),
        ({"llama__block_count": 3}, CheckpointError, r"lacks model\.layers\.2"),
        ({"llama__block_count": 1}, CheckpointError, "tensors"),
    ],
)
def test_what_is_no_parent_is_refused_with_a_reason(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        parent_folder(str(written(tmp_path / "m.gguf", model_of(), **changed)), tmp_path)
    assert not [path for path in (tmp_path / "parents").glob("*") if path.is_dir()]


def test_a_part_of_a_model_is_named_by_its_file_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one of 3 files"):
        inspect_gguf(written(tmp_path / "m-00001-of-00003.gguf", model_of()))


def test_weights_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    model = model_of()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan

    with pytest.raises(CheckpointError, match=r"m\.gguf: model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        parent_folder(str(written(tmp_path / "m.gguf", model)), tmp_path)


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("<html>not found</html>")

    with pytest.raises(CheckpointError, match="is no GGUF file"):
        inspect_gguf(tmp_path / "m.gguf")


def test_a_job_takes_a_file_and_says_how_to_write_it(tmp_path: Path) -> None:
    written(tmp_path / "m.gguf", model_of())
    job = tmp_path / "job.yaml"
    job.write_text("parent: m.gguf\ndata: {train: stdlib}\nbudget: {latency: 80%}\n")
    assert config.load(job).parent == str(tmp_path / "m.gguf")

    job.write_text("parent: .\ndata: {train: stdlib}\nbudget: {latency: 80%}\n")
    with pytest.raises(JobError, match=rf"write parent: {tmp_path}/m\.gguf"):
        config.load(job)
