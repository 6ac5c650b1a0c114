"""FFN Fusion on whole models: what joining layers costs, beside removing them, and what must cost nothing."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED
from parents import FAMILIES, child_of, logits, parent_from, random_ids, random_model, random_parent
from searches import parent_folder
from torch import Tensor
from transformers import AutoTokenizer

from blocklib.assemble import assemble
from blocklib.block import Architecture, Choice
from blocklib.ffn.fuse import fuse_weights
from blocklib.parent import Parent, load_parent
from nas.job.data import Data
from nas.job.fusion_candidates import ffn_runs, low_regions
from nas.scoring.block_dependency import block_dependency
from nas.scoring.rank_correlation import spearman
from nas.text.kept_tokens import load_tokens


def kl(parent: Parent, architecture: str, ids_BT: Tensor, base: str | None = None) -> float:
    """Nats per token from `base`, or else the parent, to a child with first weights."""
    of = parent.model if base is None else child_of(parent, base)
    one, other = (logits(model, ids_BT).float().log_softmax(-1) for model in (of, child_of(parent, architecture)))
    return float((one.exp() * (one - other)).sum(-1).mean())


def around(parent: Parent, first: int, length: int, inside: Sequence[str]) -> str:
    """The parent's architecture with `length` layers from `first` on replaced."""
    own = str(parent.architecture).split()
    return " ".join([*own[:first], *inside, *own[first + length :]])


def costs(parent: Parent, run: range, ids_BT: Tensor) -> dict[str, float]:
    """KL from the parent without the run's attentions, its FFNs one after the other, to a child as deep as the fused.

    `removed` keeps whichever FFN it does best with.
    """
    ffn, n = f"ffn{parent.shape.ffn_width}", len(run)
    alone, gone = f"skip+{ffn}", "skip+skip"
    inside = {
        "fused": [f"skip+fuse({','.join([ffn] * n)})"],
        "fused_last": [f"skip+fuse_last({','.join([ffn] * n)})"],
        "all but the last": [f"skip+fuse({','.join([ffn] * (n - 1))})", alone],
        "all but the first": [alone, f"skip+fuse({','.join([ffn] * (n - 1))})"],
    }
    base = around(parent, run.start, n, [alone] * n)
    found = {name: kl(parent, around(parent, run.start, n, what), ids_BT, base) for name, what in inside.items()}
    removed = [[alone if index == kept else gone for index in range(n)] for kept in range(n)]
    found["removed"] = min(kl(parent, around(parent, run.start, n, what), ids_BT, base) for what in removed)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_fusing_costs_less_than_removing_at_the_same_depth(seed: int, scale: float) -> None:
    """Whatever the FFNs compute. With small outputs, as trained ones have, it costs next to nothing."""
    model = random_model(FAMILIES["llama"](num_hidden_layers=8), seed)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= scale
    parent = parent_from(model)
    found = costs(parent, range(2, 6), random_ids(parent, sequences=4, tokens=32))
    assert 0 < found["fused"] < found["removed"] / (3 if scale == 1 else 50)
    assert found["fused"] < found["fused_last"] < found["removed"]
    assert 0 < found["all but the last"] < found["fused"]


@pytest.mark.parametrize("name", ["embedded", "stories260K"])
def test_so_it_does_where_a_trained_parent_depends_least(name: str) -> None:
    folder = parent_folder() if name == "embedded" else SHARED / "parents" / name
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"{name} is not there")
    parent, ids = _read(folder)
    last = low_regions(block_dependency(parent.model, ids))[-1]
    assert len(last) >= 3
    found = costs(parent, last[-4:], ids)
    assert 0 < found["fused"] < 0.7 * found["removed"]
    assert found["all but the last"] < found["fused"]


def _read(folder: Path) -> tuple[Parent, Tensor]:
    """A parent and 2048 tokens it can read."""
    parent = load_parent(str(folder))
    data = Data(
        train=(SHARED / "text/tinystories/train.txt",) if "stories" in folder.name else "stdlib",
        sequence_length=128,
        calibration_tokens=2048,
        distillation_tokens=2048,
        score_tokens=2048,
        evaluation_tokens=2048,
    )
    tokens = load_tokens(data, AutoTokenizer.from_pretrained(folder), parent.shape.vocabulary)
    return parent, torch.from_numpy(tokens.score.copy())


def test_the_matrix_foretells_what_parallel_blocks_cost(trained_parent: Parent, text_ids: Tensor) -> None:
    ids, own = text_ids[:16], str(trained_parent.architecture).split()[0]
    pairs = ffn_runs(block_dependency(trained_parent.model, ids), 2, 1.0, leave_last=False)
    assert len(pairs) == trained_parent.shape.layers - 1
    harm = [kl(trained_parent, around(trained_parent, run.first, 2, [f"{own}|{own}"]), ids) for run in pairs]
    found = spearman([run.most for run in pairs], harm)
    assert found is not None
    assert found > 0.7


@pytest.mark.parametrize("kind", ["fuse", "fuse_last"])
def test_a_fused_layer_of_a_child_is_the_sum_of_its_ffns_in_single_precision(kind: str) -> None:
    """Norms differ from layer to layer: `fuse` reads each through its own, `fuse_last` all through the last."""
    parent = random_parent("qwen3")
    child = child_of(parent, around(parent, 1, 3, [f"skip+{kind}(ffn48,ffn48,ffn48)"]))
    x = 2 * torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    members: list[Any] = list(parent.model.model.layers[1:4])
    norms = [(member if kind == "fuse" else members[-1]).post_attention_layernorm for member in members]
    with torch.no_grad():
        expected = sum(member.mlp(norm(x)) for member, norm in zip(members, norms, strict=True))
        fused = child.model.layers[1]
        found = fused.mlp(fused.post_attention_layernorm(x))
    assert not torch.equal(norms[0].weight, members[-1].post_attention_layernorm.weight) or kind == "fuse_last"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_run_of_one_changes_no_bit_of_the_logits() -> None:
    parent = random_parent()
    ids, own = random_ids(parent), parent.layer_weights(2)
    ffn = {name: own[name] for name in own if name.startswith(("mlp.", "post_attention_layernorm."))}
    for fold_norms in (False, True):
        model = deepcopy(parent.model)
        model.model.layers[2].load_state_dict(dict(own) | fuse_weights([ffn], fold_norms))
        found, expected = logits(model, ids), logits(parent.model, ids)
        assert torch.equal(found, expected) or fold_norms
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_order_of_members_changes_no_logits() -> None:
    parent = random_parent(dtype=torch.float64)
    architecture = Architecture.parse(around(parent, 1, 3, ["kv4+fuse(ffn48,ffn48,ffn48)"]))
    ffns = [
        {name: tensor for name, tensor in parent.layer_weights(layer).items() if name.startswith(("mlp.", "post_"))}
        for layer in (1, 2, 3)
    ]
    ids = random_ids(parent)

    def fused(members: Sequence[dict[str, Tensor]]) -> Tensor:
        return logits(assemble(parent, architecture, lambda choice: fuse_weights(members, fold_norms=True)), ids)

    first, *others = (fused(order) for order in permutations(ffns))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-10)
    assert (fused([ffns[0], ffns[1], ffns[1]]) - first).abs().max() > 1e-3, "other members do"


def test_a_run_across_a_live_attention_is_refused() -> None:
    architecture = random_parent().architecture
    run = architecture.with_(Choice.parse("L1.ffn=fuse(ffn48,ffn48)"))
    with pytest.raises(ValueError, match=r"L2.attention=kv4 cuts L1.ffn=fuse\(ffn48,ffn48\) in two"):
        run.with_(Choice.parse("L2.attention=kv4"))
