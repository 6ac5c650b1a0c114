"""Exports in stock vLLM and with the plugin, against the child's own logits.

vLLM has its own versions of torch and transformers, so it lives in an environment of its own. `PUZZLE_NAS_VLLM` names
the Python of one in which this package is installed too (`pip install --no-deps -e .`). Without it these tests are
skipped. `PUZZLE_NAS_PARENT` may name another parent than the one in the package.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tokenizer
from conftest import NAMED_PARENT
from parents import FAMILIES, child_of, random_model, random_parent
from test_gguf_export import SPLITTERS, VOCABULARY, byte_level
from test_serving import free_port, served_and_asked
from transformers import AutoTokenizer
from vllm_answers import NEW_TOKENS

import nas
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import load_parent
from nas.export.decilm import export_decilm
from nas.export.hf import export_hf
from nas.export.parent_settings import settings_of
from nas.export.plain import export_plain
from nas.export.vllm_flags import vllm_flags, vllm_limits

VLLM = os.environ.get("PUZZLE_NAS_VLLM", "")
TOLERANCE = 1e-4
"""The largest difference of log-probabilities in float32, of a child of a few layers."""
TRAINED_TOLERANCE = 1e-3
"""The same for a trained parent of any depth."""
GPT_SIZES: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4}
SIZES: dict[str, Any] = GPT_SIZES | {"num_key_value_heads": 4, "head_dim": 32}
"""Heads of 32, the smallest that vLLM has on a CPU."""
PROMPTS = [[5, 40, 17, 9, 33, 60, 2, 11, 25], [7, 19, 3], [50, 51, 52, 8, 12, 61, 30, 44, 1, 20, 6, 15]]

CASES = {
    "every dense kind": ("llama", "skip+ffn48 kv2+ffn16 linear+linear skip+skip kv1+fuse(ffn48,ffn24)"),
    "no attention": ("llama", "skip+ffn48 linear+ffn16 linear+linear skip+skip skip+ffn48 skip+ffn40"),
    "GPT-2's layout": ("gpt2", "skip+ffn48 kv4+ffn16 linear+linear skip+skip kv4+fuse(ffn48,ffn24)"),
    "norms of queries": ("qwen3", "skip+ffn48 kv2+ffn16 linear+linear kv1+skip kv4+ffn48 kv2+ffn48"),
    "constants": ("granite", "skip+ffn48 kv2+ffn16 linear+linear skip+skip kv1+fuse(ffn48,ffn24)"),
    "no positions": ("smollm3", "skip+ffn48 kv2+ffn16 linear+linear skip+skip kv4+ffn48 kv1+ffn24"),
    "norms behind": ("olmo2", "skip+ffn48 kv2+ffn16 linear+linear skip+skip kv4+ffn48 kv1+ffn24"),
    "in parallel": ("llama", "kv2+ffn48 kv4+ffn48|kv4+ffn48 kv4+ffn48 kv4+ffn48 skip+ffn48"),
    "sparse": ("llama", "skip+moe4x12k2 kv4+sigma_moe4x12k2 kv2+fff2x8 kv4+dip50 linear+topk20 kv1+pkm6x2k4"),
}
ATTENDING = {
    "dense": "kv2+ffn16 kv4+skip kv1+linear kv4+ffn48 kv2+ffn40 kv4+ffn48",
    "fused": "kv2+ffn16 kv4+fuse(ffn48,ffn24) kv1+ffn48 kv2+ffn40 kv4+ffn48",
    "in parallel": "kv2+ffn48 kv4+ffn48|kv4+ffn48 kv4+ffn48 kv4+ffn48 kv1+ffn48",
}
PLAIN = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
DECILM = "skip+ffn48 kv2+skip skip+ffn16 kv1+fuse(ffn48,ffn24) kv4+ffn48"

in_vllm = pytest.mark.skipif(not VLLM, reason="PUZZLE_NAS_VLLM names no Python with vLLM")


def child_for(case: str) -> PuzzleNasForCausalLM:
    family, spelling = CASES[case]
    return child_of(random_parent(family, **(GPT_SIZES if family == "gpt2" else SIZES)), spelling)


def answers(folder: Path, settings: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    question = folder.parent / "question.json"
    question.write_text(json.dumps({"prompts": PROMPTS, "settings": settings}))
    command = [VLLM, Path(__file__).with_name("vllm_answers.py"), folder, question, folder.parent / "answer.json"]
    return subprocess.run(
        command, cwd=folder.parent, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@torch.no_grad()
def is_the_child(child: PuzzleNasForCausalLM, prompt: list[int], told: dict[str, Any], tolerance: float) -> bool:
    ids = torch.tensor([prompt])
    for token, likeliest in zip(told["tokens"], told["logprobs"], strict=True):
        logprobs = child(ids, use_cache=False).logits[0, -1].log_softmax(-1)
        if int(logprobs.argmax()) != token:
            return False
        if any(abs(float(logprobs[int(name)]) - value) > tolerance for name, value in likeliest.items()):
            return False
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return len(told["tokens"]) == NEW_TOKENS


def check(
    child: PuzzleNasForCausalLM, folder: Path, made_by: str, settings: dict[str, Any], tolerance: float = TOLERANCE,
    **environment: str,
) -> None:  # fmt: skip
    process = answers(folder, settings, **environment)
    assert process.returncode == 0, process.stderr[-3000:]
    told = json.loads((folder.parent / "answer.json").read_text())
    assert told["made_by"] == made_by
    assert all(is_the_child(child, prompt, one, tolerance) for prompt, one in zip(PROMPTS, told["batch"], strict=True))
    assert is_the_child(child, PROMPTS[0], told["alone"][0], tolerance)


@in_vllm
@pytest.mark.parametrize("case", CASES)
def test_the_plugin_runs_it(case: str, tmp_path: Path) -> None:
    child = child_for(case)
    export_hf(child, tokenizer(), tmp_path / "child", "# A child")
    settings: dict[str, Any] = {"enforce_eager": True}
    if "--no-enable-prefix-caching" in vllm_flags(child.config):
        settings["enable_prefix_caching"] = False
    check(child, tmp_path / "child", "ServedForCausalLM", settings)


@in_vllm
@pytest.mark.parametrize("spelling", ATTENDING.values(), ids=ATTENDING)
def test_stock_vllm_runs_a_child_with_attention_in_every_layer(spelling: str, tmp_path: Path) -> None:
    child = child_of(random_parent("llama", **SIZES), spelling)
    export_hf(child, tokenizer(), tmp_path / "child", "# A child")
    check(child, tmp_path / "child", "TransformersForCausalLM", {"enforce_eager": True}, VLLM_PLUGINS="none")


@in_vllm
@pytest.mark.parametrize("case", ["no attention", "GPT-2's layout", "norms of queries"])
def test_stock_vllm_refuses_a_layer_without_attention(case: str, tmp_path: Path) -> None:
    export_hf(child_for(case), tokenizer(), tmp_path / "child", "# A child")
    process = answers(tmp_path / "child", {"enforce_eager": True}, VLLM_PLUGINS="none")
    assert process.returncode != 0
    assert "attention interface" in process.stderr


@in_vllm
def test_stock_vllm_runs_decilm(tmp_path: Path) -> None:
    child = child_of(random_parent("llama", **SIZES, attention_bias=False, mlp_bias=False), DECILM)
    export_decilm(child, tokenizer(), tmp_path / "child", "# A child")
    check(child, tmp_path / "child", "DeciLMForCausalLM", {"enforce_eager": True}, VLLM_PLUGINS="none")


@in_vllm
@pytest.mark.parametrize(("family", "made_by"), PLAIN.items())
def test_stock_vllm_runs_a_plain_child(family: str, made_by: str, tmp_path: Path) -> None:
    random_model(FAMILIES[family](**SIZES | {"vocab_size": VOCABULARY})).save_pretrained(tmp_path / "parent")
    child = child_of(
        load_parent(str(tmp_path / "parent")), "kv2+ffn16 skip+skip kv2+ffn16 skip+skip kv2+ffn16 kv2+ffn16"
    )
    export_plain(
        child, byte_level(SPLITTERS["qwen2"]), tmp_path / "child", "# A child", settings_of(str(tmp_path / "parent"))
    )
    check(child, tmp_path / "child", made_by, {"enforce_eager": True}, VLLM_PLUGINS="none")


@in_vllm
def test_a_plain_child_of_a_trained_parent_runs_is_timed_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = load_parent(str(NAMED_PARENT))
    block = f"kv{parent.shape.kv_heads}+ffn{parent.shape.ffn_width // 2}"
    child = child_of(parent, " ".join(["skip+skip"] + [block] * (parent.shape.layers - 1))).float()
    own = AutoTokenizer.from_pretrained(NAMED_PARENT)
    export_plain(child, own, tmp_path / "child", "# A child", settings_of(str(NAMED_PARENT)))
    settings = {"enforce_eager": True}
    check(child, tmp_path / "child", "LlamaForCausalLM", settings, TRAINED_TOLERANCE, VLLM_PLUGINS="none")

    needed = {"NAS_VLLM_PYTHON": VLLM, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    load = {"prompt_tokens": 5, "generated_tokens": 4, "threads": 2, "rounds": 2}
    found = nas.bench([tmp_path / "child"], parent=NAMED_PARENT, load=load, engine="vllm", progress=False)
    ((first, second),) = (group.lines for group in found.engines)
    assert (found.engines[0].engine, first.name, second.name) == ("vllm", "parent", "child")
    assert all(figure.value > 0 for line in (first, second) for figure in line.figures.values())
    served_and_asked(tmp_path / "home", ["serve", str(tmp_path / "child"), "--port", str(free_port())], signal.SIGINT)


@in_vllm
def test_a_sparse_ffn_is_refused_unless_eager(tmp_path: Path) -> None:
    child = child_for("sparse")
    export_hf(child, tokenizer(), tmp_path / "child", "# A child")
    process = answers(tmp_path / "child", {"enforce_eager": False})
    assert process.returncode != 0
    assert "layer 0: in a moe FFN the shapes depend on the tokens" in process.stderr
    assert "--enforce-eager" in process.stderr


def test_the_flags_are_what_the_layers_need() -> None:
    assert vllm_flags(child_for("every dense kind").config) == ("--trust-remote-code",)
    assert "--enforce-eager" in vllm_flags(child_for("sparse").config)
    assert "--no-enable-prefix-caching" in vllm_flags(child_for("no attention").config)


def test_a_child_that_stock_vllm_lacks_says_so() -> None:
    (said,) = vllm_limits(child_for("every dense kind").config)
    assert "layers without attention (here 0, 2, 3)" in said
    assert "puzzle-nas" in said
    assert "decilm" in said
    assert vllm_limits(child_of(random_parent("llama"), "kv2+ffn16 " + "kv4+ffn48 " * 4 + "kv1+linear").config) == ()


def test_registering_imports_neither_torch_nor_vllm() -> None:
    code = "import sys, nas.vllm_plugin.registration; assert not {'torch', 'vllm', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
