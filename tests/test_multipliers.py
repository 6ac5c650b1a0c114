"""Granite's constants: whatever a subblock adds is multiplied, and nothing else of it is another."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from parents import (
    FAMILIES,
    GEMMA3,
    MULTIPLIERS,
    child_of,
    logits,
    parent_from,
    random_ids,
    random_model,
    random_parent,
)
from test_heal import losses

from blocklib.formats.folded import folded, has_multipliers
from blocklib.parent import own_shape, own_steps
from blocklib.stream import embed, slots
from blocklib.tables import Ends
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing

CHILD = "skip+ffn48 kv1+ffn16 linear+linear skip+skip kv4+fuse(ffn48,ffn24)"


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_each_constant_shows_in_the_logits_and_in_the_digest(name: str) -> None:
    ids, found = random_ids(random_parent("granite")), random_model(FAMILIES["granite"]())
    other = random_model(FAMILIES["granite"](**{name: 2 * MULTIPLIERS[name]}))
    one, changed = parent_from(found), parent_from(other)
    assert not torch.allclose(logits(one.model, ids), logits(changed.model, ids))
    assert one.digest != changed.digest


def test_the_stream_of_a_parent_is_its_own_forward() -> None:
    parent = random_parent("granite")
    ids = random_ids(parent)
    *_, last = slots(parent.model, ids, 2 * parent.shape.layers)
    final = parent.model.model.norm(last.entering_BTD + last.delta_BTD)
    assert torch.equal(parent.model.lm_head(final), logits(parent.model, ids))
    entering = embed(parent.model, ids)
    assert torch.equal(entering, parent.model.model.embed_tokens(ids) * MULTIPLIERS["embedding_multiplier"])


def test_a_dropped_block_is_nothing() -> None:
    parent = random_parent("granite")
    ids = random_ids(parent)
    child = child_of(parent, " ".join(["skip+skip"] * 6))
    entering = child.model.embed_tokens(ids) * MULTIPLIERS["embedding_multiplier"]
    expected = torch.nn.functional.linear(child.model.norm(entering), child.lm_head.weight)
    assert torch.equal(logits(child, ids), expected / MULTIPLIERS["logits_scaling"])


def test_a_head_in_place_of_the_parents_divides_as_well() -> None:
    parent = random_parent("granite")
    states = torch.randn(3, parent.shape.hidden, generator=torch.Generator().manual_seed(2))
    head = Ends(head_VD=parent.model.lm_head.weight).head(parent.config)
    assert head is not None
    assert torch.equal(head(states), parent.model.lm_head(states))


def test_healing_starts_at_the_distance_of_whole_models(tmp_path: Path) -> None:
    parent = random_parent("granite")
    child, ids = deepcopy(child_of(parent, CHILD)), random_ids(parent, sequences=4)
    with torch.no_grad():
        before, meant = (logits(model, ids).log_softmax(-1) for model in (child, parent.model))
    settings = Healing(tokens=4 * 12, batch=4, learning_rate=1e-3, warmup=0.1, hidden_weight=0.0)
    list(heal(parent.model, child, ids, settings, tmp_path))
    distance = float((meant.exp() * (meant - before)).sum(-1).mean())
    assert losses(tmp_path)[0] == pytest.approx(distance, rel=1e-4)


def test_keys_hold_steps_that_a_llama_has_not() -> None:
    """What earlier versions stored for other families keeps its keys."""
    assert own_steps(random_parent().config) == {}
    assert own_steps(random_parent("gpt2").config) == {}
    assert own_steps(random_parent("granite").config) == {name: MULTIPLIERS[name] for name in list(MULTIPLIERS)[1:]}
    assert own_steps(random_parent("smollm3").config) == {"unrotated_layers": [1, 3, 5]}
    assert own_steps(random_parent("olmo2").config) == {"norms_after": True, "joint_qk_norm": True}
    assert own_steps(random_parent("gemma3_text").config) == {
        "embedding_multiplier": 32**0.5,
        "norms_around": True,
        "zero_centred_norms": True,
        "rounds_embedding_multiplier": True,
        "local_layers": [0, 1, 3, 4],
        "local_window": 5,
        "local_rope_parameters": GEMMA3["rope_parameters"]["sliding_attention"],
    }
    shape = random_parent("olmo2").shape
    later = {"norm_placement", "joint_qk_norm", "local_layers", "local_window"}
    assert vars(shape).keys() - shape.sizes.keys() == later


@pytest.mark.parametrize("tied", [False, True])
def test_folded_into_the_weights_they_give_the_same_logits(tied: bool) -> None:
    parent = random_parent("granite", mlp_bias=True, tie_word_embeddings=tied)
    child, ids = child_of(parent, CHILD), random_ids(parent)
    without = folded(child)
    assert has_multipliers(child.config)
    assert not has_multipliers(without.config)
    assert own_shape(without.config) == own_shape(child.config)
    torch.testing.assert_close(logits(without, ids), logits(child, ids), rtol=1e-4, atol=1e-4)


def test_a_child_without_constants_is_its_own_fold() -> None:
    child = child_of(random_parent(), CHILD)
    assert folded(child) is child
