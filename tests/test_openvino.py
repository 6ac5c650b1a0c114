"""Exports in OpenVINO, from the folder alone: exported by torch, converted, and compared on the CPU.

Skipped where OpenVINO is not installed. Only the pass without a cache is compared.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tokenizer
from parents import FAMILIES, child_of, random_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from blocklib.parent import load_parent
from nas.export.decilm import export_decilm
from nas.export.hf import export_hf
from nas.export.parent_settings import settings_of
from nas.export.plain import export_plain

CASES = {
    "hf": "kv2+ffn16 skip+ffn48 linear+linear kv4+skip skip+skip kv1+ffn48",
    "decilm": "kv2+ffn16 skip+ffn48 kv4+ffn48 kv4+skip skip+skip kv1+ffn48",
    "plain": "kv2+ffn16 skip+skip kv2+ffn16 kv2+ffn16 kv2+ffn16 kv2+ffn16",
}
EXPORTS: dict[str, Any] = {"hf": export_hf, "decilm": export_decilm, "plain": export_plain}


class Logits(nn.Module):
    """A causal model as a function from ids [B, T] to logits [B, T, V]."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        return found


@pytest.mark.filterwarnings("default")  # OpenVINO's and torch's own
@pytest.mark.parametrize("format", CASES)
def test_openvino_computes_the_child_s_logits(format: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    random_model(FAMILIES["llama"](attention_bias=False, mlp_bias=False)).save_pretrained(tmp_path / "parent")
    child = child_of(load_parent(str(tmp_path / "parent")), CASES[format])
    EXPORTS[format](child, tokenizer(), tmp_path / "child", "# A child", settings_of(str(tmp_path / "parent")))

    flag = {} if format == "plain" else {"trust_remote_code": True}
    model = Logits(AutoModelForCausalLM.from_pretrained(tmp_path / "child", dtype=torch.float32, **flag)).eval()
    ids_BT = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(model, (ids_BT,))
        wanted_BTV = child.float()(ids_BT, use_cache=False).logits
    converted = openvino.convert_model(program)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found_BTV = torch.from_numpy(compiled([ids_BT.numpy()])[0])

    assert (found_BTV - wanted_BTV).abs().max().item() < 1e-4
