"""A child is its parent where nothing changed, and generates with a cache what it generates without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parents import (
    EVERY_KIND,
    FAMILIES,
    child_of,
    every_kind,
    first_weights_of,
    logits,
    random_ids,
    random_model,
    random_parent,
)
from torch import Tensor

from blocklib.assemble import assemble, assemble_stored, parent_part
from blocklib.block import Architecture, Choice
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, computing, load_parent
from blocklib.stream import delta, rotary
from nas.stages.child_file import load_child, save_child

NEW_TOKENS = 10
CHANGES = {
    "nothing": "kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48",
    "fewer KV heads, not the same everywhere": "kv1+ffn48 kv2+ffn48 kv4+ffn48 kv1+ffn48 kv2+ffn48 kv4+ffn48",
    "narrower FFNs": "kv4+ffn16 kv4+ffn7 kv4+ffn48 kv4+ffn1 kv4+ffn24 kv4+ffn40",
    "no attention in the first layer": "skip+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48",
    "linear attention in the first layer": "linear+ffn48 kv4+ffn48 kv4+ffn48 linear+ffn48 kv4+ffn48 kv4+ffn48",
    "no attention in the last layers": "kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 linear+ffn48 skip+ffn48",
    "no FFN": "kv4+skip kv4+ffn48 kv4+linear kv4+ffn48 kv4+ffn48 kv4+skip",
    "dropped blocks": "skip+skip kv4+ffn48 skip+skip skip+skip kv4+ffn48 skip+skip",
    "one attention left": "skip+ffn48 skip+ffn48 linear+ffn48 kv1+ffn48 skip+skip skip+ffn48",
    "a fused run": "kv4+ffn48 kv4+fuse(ffn48,ffn16,ffn48) kv4+ffn48 kv4+ffn48",
    "a fused run of the paper's form": "kv4+fuse_last(ffn48,ffn48) kv4+fuse_last(ffn48,ffn48) kv4+ffn48 kv4+ffn48",
    "a fused run without attention": "skip+fuse(ffn48,ffn48) linear+fuse(ffn48,ffn48) kv4+ffn48 kv4+ffn48",
    "blocks in parallel": "kv4+ffn48|kv4+ffn48|kv2+ffn16 skip+ffn48|window4+skip kv4+ffn48",
    "windows": "window5+ffn48 kv4+ffn48 window3+ffn48 window5+ffn48 skip+ffn48 window64+ffn48",
    "nothing but windows": " ".join(["window4+ffn48"] * 6),
    "everything": EVERY_KIND,
}


def greedy(model: Any, ids_BT: Tensor, **how: Any) -> Tensor:
    """Exactly NEW_TOKENS new tokens, the most likely one each time: [B, NEW_TOKENS]."""
    how = {"attention_mask": torch.ones_like(ids_BT)} | how
    model.generation_config.eos_token_id = None
    found: Tensor = model.generate(ids_BT, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **how)
    assert found.shape[1] == ids_BT.shape[1] + NEW_TOKENS
    return found[:, ids_BT.shape[1] :]


def greedy_by_hand(model: PuzzleNasForCausalLM, ids_BT: Tensor) -> Tensor:
    """The oracle: a whole forward per token, nothing kept."""
    for _ in range(NEW_TOKENS):
        ids_BT = torch.cat([ids_BT, logits(model, ids_BT)[:, -1:].argmax(-1)], dim=1)
    return ids_BT[:, -NEW_TOKENS:]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parents_own_architecture_is_the_parent(family: str) -> None:
    parent = random_parent(family)

    def nothing_is_asked_for(choice: Choice) -> dict[str, Tensor]:
        raise AssertionError(choice)

    child = assemble(parent, parent.architecture, nothing_is_asked_for)
    ids = random_ids(parent, tokens=20)
    assert torch.equal(logits(child, ids), logits(parent.model, ids))
    shared = child.state_dict()
    assert all(tensor.data_ptr() == shared[name].data_ptr() for name, tensor in parent.model.state_dict().items())


def test_a_trained_parent_too(trained_parent: Parent, text_ids: Tensor) -> None:
    child = assemble(trained_parent, trained_parent.architecture, dict[Choice, Any]().__getitem__)
    assert torch.equal(logits(child, text_ids[:4]), logits(trained_parent.model, text_ids[:4]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_child_runs_on_weights_as_they_are_stored(family: str, tmp_path: Path) -> None:
    """Bit for bit as with all of them in float32, in its file too, and no tensor is there twice."""
    random_model(FAMILIES[family]()).to(torch.bfloat16).save_pretrained(tmp_path)
    parent = load_parent(str(tmp_path)).at_hand()
    architecture = Architecture.parse("linear+ffn48 kv4+ffn16 skip+ffn48 kv4+ffn48 skip+skip kv4+ffn48")
    given = first_weights_of(parent, architecture)
    stored = assemble_stored(parent, architecture, lambda choice: given.get(choice, {}))
    assert {tensor.dtype for tensor in stored.state_dict().values()} == {torch.bfloat16, torch.float32}
    held = {
        tensor.data_ptr() for tensor in [*parent.weights.values(), *(t for g in given.values() for t in g.values())]
    }
    assert {tensor.data_ptr() for tensor in stored.state_dict().values()} <= held
    save_child(tmp_path / "child.safetensors", stored, {})
    whole = assemble(parent, architecture, lambda choice: given.get(choice, {}))
    assert {tensor.dtype for tensor in whole.state_dict().values()} == {torch.float32}
    ids = random_ids(parent)
    for child in (stored, load_child(tmp_path / "child.safetensors")):
        running = computing(child)
        assert torch.equal(logits(running, ids), logits(whole, ids))
        assert torch.equal(greedy(running, ids), greedy(whole, ids))


def test_blocks_in_parallel_add_up_what_each_makes_of_one_input() -> None:
    parent = random_parent()
    child = child_of(parent, "kv4+ffn48 kv4+ffn48|kv4+ffn48|kv4+ffn48 kv4+ffn48 kv4+ffn48")
    ids = random_ids(parent)
    with torch.no_grad():
        theirs = parent.model(ids, output_hidden_states=True).hidden_states[1]
        tables = rotary(parent.model, theirs)
        added = sum(delta(parent.model.model.layers[layer], theirs, tables) for layer in (1, 2, 3))
        found = child(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[4], theirs + added)
    assert not torch.allclose(found[4], parent.model(ids, output_hidden_states=True).hidden_states[4], atol=1e-2)


def test_parts_come_from_where_they_must() -> None:
    """The parent's own from the parent, the others as they were given, at the child's places."""
    parent = random_parent()
    architecture = Architecture.parse("kv4+ffn16 skip+ffn48 kv2+fuse(ffn48,ffn16) linear+skip kv4+ffn48")
    given = first_weights_of(parent, architecture)
    child = assemble(parent, architecture, lambda choice: given.get(choice, {}))
    held = child.state_dict()
    for index, (layer, block) in enumerate(architecture.placed()):
        for role, subblock in Choice(layer, "block", block).subblocks:
            choice = Choice(layer, role, subblock)
            expected = parent_part(parent, layer, role) if parent.own(choice) else given.get(choice, {})
            for name, tensor in expected.items():
                assert torch.equal(held.pop(f"model.layers.{index}.{name}"), tensor)
    assert not [name for name in held if name.startswith("model.layers.")]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_changes_no_token(change: str, cache: str) -> None:
    parent = random_parent("llama")
    child = child_of(parent, CHANGES[change])
    ids = random_ids(parent, tokens=9)
    expected = greedy_by_hand(child, ids)
    assert torch.equal(greedy(child, ids, use_cache=False), expected)
    how = {"cache_implementation": "static"} if cache == "static" else {}
    assert torch.equal(greedy(child, ids, use_cache=True, **how), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_no_token_in_any_family(family: str) -> None:
    parent = random_parent(family)
    child = child_of(parent, every_kind(family))
    ids = random_ids(parent, tokens=9)
    assert torch.equal(greedy(child, ids, use_cache=True), greedy_by_hand(child, ids))


def test_no_attention_at_all_generates_too() -> None:
    parent = random_parent()
    child = child_of(parent, "skip+ffn48 linear+ffn48 skip+skip linear+linear skip+ffn16 linear+ffn48")
    ids = random_ids(parent, tokens=9)
    assert torch.equal(greedy(child, ids), greedy_by_hand(child, ids))


@pytest.mark.parametrize("change", ["no attention in the first layer", "dropped blocks", "windows", "everything"])
def test_padding_on_the_left_changes_no_token(change: str) -> None:
    parent = random_parent()
    child = child_of(parent, CHANGES[change])
    short, long = random_ids(parent, 1, 5), random_ids(parent, 1, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(short, (4, 0)), long])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = torch.cat([greedy_by_hand(child, short), greedy_by_hand(child, long)])
    for cached in (True, False):
        assert torch.equal(greedy(child, ids, attention_mask=mask, use_cache=cached), expected)


def test_a_trained_parents_child_is_cached_right(trained_parent: Parent, text_ids: Tensor) -> None:
    shape = trained_parent.shape
    own, half = f"kv{shape.kv_heads}+ffn{shape.ffn_width}", shape.ffn_width // 2
    changed = [f"skip+ffn{half}", "linear+skip", f"kv1+fuse(ffn{shape.ffn_width},ffn{half})"]
    child = child_of(trained_parent, " ".join([*changed, *[own] * (shape.layers - 4)]))
    ids = text_ids[:2, :16]
    assert torch.equal(greedy(child, ids, use_cache=True), greedy_by_hand(child, ids))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("kv4+ffn48", "the architecture spans 1 layers; the parent has 6"),
        (" ".join(["kv4+ffn48"] * 5 + ["kv3+ffn48"]), "kv3: 3 KV heads do not divide"),
        (" ".join(["kv4+ffn48"] * 5 + ["kv4+mlp4"]), "there is no kind 'mlp' of ffn"),
    ],
)
def test_what_does_not_fit_is_refused(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(random_parent(), Architecture.parse(spelling), lambda choice: {})
