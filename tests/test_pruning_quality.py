"""Pruned FFNs on a real parent: what dynamic input pruning keeps of it, beside other ways to read as little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import SHARED
from torch import Tensor, nn
from transformers import AutoTokenizer

from blocklib.assemble import assemble
from blocklib.block import Architecture, Block, Subblock
from blocklib.distil import Distilled, Training, distil
from blocklib.ffn.dip import PrunedFFN
from blocklib.fit import build
from blocklib.kinds import parent_block
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from nas.evaluate import evaluate, perplexity

_STORIES, _TEXT = SHARED / "parents/stories3M", SHARED / "text/tinystories"


@pytest.fixture(scope="module")
def parent() -> Parent:
    if not _STORIES.is_dir() or not _TEXT.is_dir():
        pytest.skip("no stories3M, or no stories to read")
    return load_parent(str(_STORIES))


def stories(file: str, tokens: int) -> Tensor:
    """[tokens / 256, 256]."""
    tokenizer = AutoTokenizer.from_pretrained(_STORIES)
    text = (_TEXT / file).read_text(encoding="utf-8")[: 8 * tokens].replace("<|endoftext|>", tokenizer.bos_token)
    ids: Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
    return ids[:tokens].view(-1, 256)


def everywhere(parent: Parent, spelling: str) -> Architecture:
    """The parent with this FFN in every layer."""
    return Architecture((Block(parent_block(parent.shape).attention, Subblock.parse(spelling)),) * parent.shape.layers)


def untrained(parent: Parent, spelling: str) -> PuzzleNasForCausalLM:
    """With first weights, from what the parent does with stories, in every layer."""
    architecture = everywhere(parent, spelling)
    choices = [choice for choice in architecture.choices() if choice.role == "ffn"]
    built = {one.choice: one.first for one in build(parent, choices, stories("train.txt", 2048), batch=8, fit=False)}
    return assemble(parent, architecture, built.__getitem__)


def ratio(parent: Parent, child: Any, heldout: Tensor) -> float:
    """Held-out perplexity over the parent's."""
    whole = evaluate(parent.model, parent.model, heldout).lm_loss
    return perplexity(evaluate(parent.model, child, heldout).lm_loss - whole)


@contextmanager
def hidden_masked(parent: Parent, keep: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Inside, every FFN of the parent uses only those of its hidden values that `keep` says, bool [..., F]."""
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given, mlp=layer.mlp: given[0].masked_fill(~keep(mlp, given[0]), 0)
        )
        for layer in parent.model.model.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def largest(sizes: Tensor, share: float) -> Tensor:
    kept = sizes.topk(int(share * sizes.shape[-1]), dim=-1).indices
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(-1, kept, True)


@torch.no_grad()
def gate_pruned(parent: Parent, keep: float, heldout: Tensor) -> float:
    """CATS (arXiv 2404.08763): the gate is computed whole, and of up and down only what its largest values ask for, so
    that as many weights are read."""
    share = (3 * keep - 1) / 2
    gates: dict[nn.Module, Tensor] = {}

    def remember(mlp: nn.Module, gate: Tensor) -> None:
        gates[mlp] = nn.functional.silu(gate).abs()

    handles = [
        layer.mlp.gate_proj.register_forward_hook(lambda _, __, gate, mlp=layer.mlp: remember(mlp, gate))
        for layer in parent.model.model.layers
    ]
    whole = evaluate(parent.model, parent.model, heldout).lm_loss
    with hidden_masked(parent, lambda mlp, _: largest(gates[mlp], share)):
        loss = evaluate(parent.model, parent.model, heldout).lm_loss
    for handle in handles:
        handle.remove()
    return perplexity(loss - whole)


@torch.no_grad()
def without_random_neurons(parent: Parent, keep: float, heldout: Tensor) -> float:
    seeded = torch.Generator().manual_seed(0)
    width = parent.shape.ffn_width
    masks = {layer.mlp: largest(torch.rand(width, generator=seeded), keep) for layer in parent.model.model.layers}
    whole = evaluate(parent.model, parent.model, heldout).lm_loss
    with hidden_masked(parent, lambda mlp, hidden: masks[mlp].expand_as(hidden)):
        return perplexity(evaluate(parent.model, parent.model, heldout).lm_loss - whole)


@torch.no_grad()
@pytest.mark.parametrize("percent", [75, 50])
def test_the_fitted_split_beats_every_other_way_to_read_as_little(parent: Parent, percent: int) -> None:
    """Nothing is trained. (At 25 % of so small a model every way ends in ruin.)"""
    heldout, keep = stories("heldout.txt", 2048), percent / 100
    child = untrained(parent, f"dip{percent}")
    fitted = ratio(parent, child, heldout)
    for layer in child.model.layers:
        assert isinstance(layer.mlp, PrunedFFN)
        layer.mlp.kept_inputs, layer.mlp.kept_hidden = (int(keep * n) for n in (192, 512))
    equal = ratio(parent, child, heldout)
    fewer = untrained(parent, f"ffn{int(keep * parent.shape.ffn_width)}")
    static, random = ratio(parent, fewer, heldout), without_random_neurons(parent, keep, heldout)
    assert 1 <= fitted < equal < static < random
    assert fitted < gate_pruned(parent, keep, heldout)
    assert fitted < {75: 1.1, 50: 2.1}[percent]


def test_adapters_bring_a_hard_pruned_ffn_closer_and_read_no_more(parent: Parent) -> None:
    heldout, text = stories("heldout.txt", 2048), stories("train.txt", 8192)
    architecture = everywhere(parent, "dip25")
    choices = [choice for choice in architecture.choices() if choice.role == "ffn"]
    training = Training(16_384, 1e-3, lora_rank=8)
    events = distil(parent, dict.fromkeys(choices, training), text[:8], text, heldout[:4], batch=8, least_squares=False)
    found = {event.choice: event for event in events if isinstance(event, Distilled)}
    before = untrained(parent, "dip25")
    after = assemble(parent, architecture, lambda choice: found[choice].weights)
    assert ratio(parent, after, heldout) < 0.98 * ratio(parent, before, heldout)
    shapes = [{name: tensor.shape for name, tensor in child.state_dict().items()} for child in (before, after)]
    assert shapes[0] == shapes[1], "adapters are merged: there is nothing more to read"
