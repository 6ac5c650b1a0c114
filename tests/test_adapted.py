"""Exports in the tools that people use next: PEFT trains a LoRA on them, and lm_eval scores them from their folder.

Skipped where PEFT or lm_eval is not installed. `PUZZLE_NAS_PARENT` may name another parent than the one in the package.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NAMED_PARENT
from parents import child_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import load_parent
from nas.export.decilm import export_decilm
from nas.export.hf import export_hf
from nas.export.parent_settings import settings_of
from nas.export.plain import export_plain
from nas.export.verify import probe_ids

EXPORTS = {"hf": export_hf, "decilm": export_decilm, "plain": export_plain}


@pytest.fixture(scope="module", params=EXPORTS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PuzzleNasForCausalLM, Path, dict[str, bool]]:
    """A child of the parent in the package, or of the named one, its export, and the flag that loads it."""
    parent = load_parent(str(NAMED_PARENT))
    block = f"kv{parent.shape.kv_heads}+ffn{parent.shape.ffn_width // 2}"
    layers = ["skip+skip" if layer == 1 else block for layer in range(parent.shape.layers)]
    if request.param != "plain":
        layers[0] = f"skip+ffn{parent.shape.ffn_width}"
    child = child_of(parent, " ".join(layers)).float()
    out = tmp_path_factory.mktemp("exported") / request.param
    EXPORTS[request.param](
        child, AutoTokenizer.from_pretrained(NAMED_PARENT), out, "# A child", settings_of(str(NAMED_PARENT))
    )
    return child, out, {} if request.param == "plain" else {"trust_remote_code": True}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_adapts_it(exported: tuple[PuzzleNasForCausalLM, Path, dict[str, bool]]) -> None:
    peft = pytest.importorskip("peft")
    _, out, flag = exported
    model = AutoModelForCausalLM.from_pretrained(out, **flag)
    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights="gaussian")
    adapted = peft.get_peft_model(model, lora)
    optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=1e-3)
    ids_BT = probe_ids(model.config.vocab_size)
    before = adapted(ids_BT, labels=ids_BT).loss
    before.backward()
    optimizer.step()
    assert adapted(ids_BT, labels=ids_BT).loss < before


def test_lm_eval_scores_it_as_it_scores_ours(
    exported: tuple[PuzzleNasForCausalLM, Path, dict[str, bool]], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    child, out, flag = exported
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "def f(x):\n    return x + 1\n"}) + "\n")
    (tmp_path / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'text.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}]\n"
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tokenizer = AutoTokenizer.from_pretrained(out)

    def perplexity(model: Any, **flag: bool) -> float:
        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=64, dtype="float32", **flag
        )
        found = simple_evaluate(model=lm, tasks=["toy"], bootstrap_iters=0, task_manager=tasks)
        return float(found["results"]["toy"]["word_perplexity,none"])

    assert perplexity(str(out), **flag) == pytest.approx(perplexity(child), rel=1e-4)
