"""Pruned FFNs on a real parent: what dynamic input pruning keeps of it, beside other ways to read as little."""

from typing import Any

import pytest
import torch
from conftest import SHARED
from parents import texts_of
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.pruning import gate_loss, random_loss
from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import Architecture, Block, Subblock
from blocklib.distil import Distilled, Training, distil
from blocklib.ffn.dip import PrunedFFN
from blocklib.initial_weights import build
from blocklib.kinds import parent_block
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from nas.stages.evaluate import evaluate, perplexity

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
    built = {
        one.choice: one.first
        for one in build(parent, choices, cached(parent.model, stories("train.txt", 2048), 8), batch=8, fit=False)
    }
    return assemble(parent, architecture, built.__getitem__)


def ratio(parent: Parent, child: Any, heldout: Tensor) -> float:
    """Held-out perplexity over the parent's."""
    whole = evaluate(parent.model, parent.model, heldout).lm_loss
    return perplexity(evaluate(parent.model, child, heldout).lm_loss - whole)


@torch.no_grad()
@pytest.mark.parametrize("percent", [75, 50])
def test_the_fitted_split_beats_every_other_way_to_read_as_little(parent: Parent, percent: int) -> None:
    """Nothing is trained. (At 25 % of so small a model every way ends in ruin.)"""
    heldout, keep = stories("heldout.txt", 2048), percent / 100
    own = evaluate(parent.model, parent.model, heldout).lm_loss
    child = untrained(parent, f"dip{percent}")
    fitted = ratio(parent, child, heldout)
    for layer in child.model.layers:
        assert isinstance(layer.mlp, PrunedFFN)
        layer.mlp.kept_inputs, layer.mlp.kept_hidden = (int(keep * n) for n in (192, 512))
    equal = ratio(parent, child, heldout)
    fewer = untrained(parent, f"ffn{int(keep * parent.shape.ffn_width)}")
    static, random = ratio(parent, fewer, heldout), perplexity(random_loss(parent, keep, heldout) - own)
    assert 1 <= fitted < equal < static < random
    by_gate = gate_loss(parent, keep, heldout)
    assert by_gate is not None
    assert fitted < perplexity(by_gate - own)
    assert fitted < {75: 1.1, 50: 2.1}[percent]


def test_adapters_bring_a_hard_pruned_ffn_closer_and_read_no_more(parent: Parent) -> None:
    heldout, text = stories("heldout.txt", 2048), stories("train.txt", 8192)
    architecture = everywhere(parent, "dip25")
    choices = [choice for choice in architecture.choices() if choice.role == "ffn"]
    training = Training(16_384, 1e-3, lora_rank=8)
    texts = texts_of(parent, text[:8], text, heldout[:4], batch=8)
    events = distil(parent, dict.fromkeys(choices, training), texts, least_squares=False)
    found = {event.choice: event for event in events if isinstance(event, Distilled)}
    before = untrained(parent, "dip25")
    after = assemble(parent, architecture, lambda choice: found[choice].weights)
    assert ratio(parent, after, heldout) < 0.98 * ratio(parent, before, heldout)
    shapes = [{name: tensor.shape for name, tensor in child.state_dict().items()} for child in (before, after)]
    assert shapes[0] == shapes[1], "adapters are merged: there is nothing more to read"
