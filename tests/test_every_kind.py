"""Every kind there is, on both layouts: built, distilled, saved, reloaded, generating with a cache, healed."""

import itertools
from pathlib import Path

import pytest
import torch
from parents import child_of, first_weights_of, logits, random_ids, random_parent, texts_of
from test_assemble import greedy, greedy_by_hand
from torch import Tensor

from blocklib.assemble import assemble
from blocklib.block import SKIP, Architecture, Block, Choice, Role, Subblock
from blocklib.distil import Distilled, Training, distil, normalised_error, regulariser, trained
from blocklib.kind import Weights
from blocklib.kinds import ATTENTION, FFN, choice_parameters, choice_touched, control, kind_of, parent_block
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from blocklib.stream import delta, rotary, slots, variant
from cost_models.analytic import choice_cost
from cost_models.scenario import Scenario
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing

SPELLINGS: dict[str, tuple[Role, str]] = {
    "kv": ("attention", "kv2"),
    "window": ("attention", "window5"),
    "linear attention": ("attention", "linear"),
    "ffn": ("ffn", "ffn24"),
    "linear": ("ffn", "linear"),
    "dip": ("ffn", "dip50"),
    "dip_threshold": ("ffn", "dip_threshold50"),
    "moe": ("ffn", "moe4x12k2"),
    "moe with shared experts": ("ffn", "moe4x12k1s1"),
    "sigma_moe": ("ffn", "sigma_moe4x12k2"),
    "topk": ("ffn", "topk16"),
    "pkm": ("ffn", "pkm5x2k3"),
    "pkm_softmax": ("ffn", "pkm_softmax5x2k3"),
    "fff": ("ffn", "fff2x12"),
    "ultra": ("ffn", "ultra2x3"),
}
"""One subblock of every kind for a parent of six layers, hidden size 32 and FFN width 48; runs are tested elsewhere."""
FAMILIES = ("llama", "gpt2")


def of_kind(name: str, layer: int) -> Choice:
    role, text = SPELLINGS[name]
    return Choice(layer, role, Subblock.parse(text))


def architecture_with(parent: Parent, name: str) -> Architecture:
    """It stands in layers 0, 2, 3 and 5."""
    architecture = parent.architecture
    for layer in (0, 2, 3, 5):
        architecture = architecture.with_(of_kind(name, layer))
    return architecture


def distilled(parent: Parent, choices: list[Choice], tokens: int = 1024) -> dict[Choice, Distilled]:
    ids = random_ids(parent, 32, 16)
    training = Training(tokens, 3e-4)
    events = distil(parent, dict.fromkeys(choices, training), texts_of(parent, ids, ids, ids[:4], batch=8))
    return {event.choice: event for event in events if isinstance(event, Distilled)}


def healed(parent: Parent, child: PuzzleNasForCausalLM, folder: Path) -> None:
    for _ in heal(parent.model, child, random_ids(parent, 16, 16), Healing(512, 8, 1e-4, 0.05, 1.0), folder):
        pass


def test_no_kind_is_left_out() -> None:
    tried = {(role, Subblock.parse(text).kind) for role, text in SPELLINGS.values()}
    there = {("attention", name) for name in ATTENTION} | {("ffn", name) for name in FFN}
    assert tried | {("attention", "skip"), ("ffn", "skip"), ("ffn", "fuse"), ("ffn", "fuse_last")} == there


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SPELLINGS)
class TestEveryKind:
    def test_it_generates_with_a_cache_what_it_does_without(self, name: str, family: str) -> None:
        parent = random_parent(family)
        child = child_of(parent, str(architecture_with(parent, name)))
        ids = random_ids(parent, tokens=9)
        assert torch.equal(greedy(child, ids), greedy_by_hand(child, ids))
        # One sequence: what a token alone goes through may be another path than many together.
        assert torch.equal(greedy(child, ids[:1]), greedy_by_hand(child, ids[:1]))

    def test_it_is_the_same_saved_and_reloaded(self, name: str, family: str, tmp_path: Path) -> None:
        parent = random_parent(family)
        child = child_of(parent, str(architecture_with(parent, name)))
        child.save_pretrained(tmp_path)
        again = PuzzleNasForCausalLM.from_pretrained(tmp_path).eval()
        ids = random_ids(parent)
        torch.testing.assert_close(logits(again, ids), logits(child, ids))

    def test_its_parameters_are_those_counted(self, name: str, family: str) -> None:
        parent = random_parent(family)
        choice = of_kind(name, 2)
        own = Choice(2, choice.role, getattr(parent_block(parent.shape), choice.role))
        child = child_of(parent, str(parent.architecture.with_(choice)))
        more = choice_parameters(choice, parent.shape) - choice_parameters(own, parent.shape)
        assert _count(child) - _count(parent.model) == more

    def test_what_a_pass_reads_grows_to_the_whole(self, name: str, family: str) -> None:
        shape = random_parent(family).shape
        choice = of_kind(name, 0)
        read = [choice_touched(choice, shape, tokens) for tokens in (1, 2, 8, 64, 4096)]
        assert all(0 < one <= more + 1e-6 for one, more in itertools.pairwise(read))
        assert read[-1] <= choice_parameters(choice, shape) + 1e-6
        sparse = kind_of(*choice.subblocks[0]).is_sparse
        assert (read[0] < choice_parameters(choice, shape)) == sparse
        assert (control(choice.subblocks[0][1], shape) is not None) == sparse if choice.role == "ffn" else not sparse
        cost = choice_cost(choice, shape, Scenario("cpu", "float32", 8, 512, 2))
        assert cost.active_parameters == round(read[0])
        assert (cost.decode_bytes, cost.prefill_bytes) == (round(4 * read[2]), round(4 * read[-1]))

    def test_distilled_then_healed(self, name: str, family: str, tmp_path: Path) -> None:
        """First block by block, then as a whole."""
        parent = random_parent(family)
        architecture = architecture_with(parent, name)
        found = distilled(parent, [part for part in architecture.choices() if not parent.own(part)])
        child = _own_copy(assemble(parent, architecture, lambda choice: found[choice].weights))
        before = logits(child, random_ids(parent))
        healed(parent, child, tmp_path / "heal")
        after = logits(child, random_ids(parent))
        assert torch.isfinite(after).all()
        assert not torch.equal(before, after)
        ids = random_ids(parent, tokens=9)
        assert torch.equal(greedy(child, ids), greedy_by_hand(child, ids))

    def test_healed_then_distilled(self, name: str, family: str, tmp_path: Path) -> None:
        """First as a whole, from first weights, then block by block: each comes closer to what it stands for."""
        parent = random_parent(family)
        architecture = architecture_with(parent, name)
        child = _own_copy(child_of(parent, str(architecture)))
        healed(parent, child, tmp_path / "heal")
        ids, choice = random_ids(parent, 64, 16), of_kind(name, 3)
        with torch.no_grad():
            passes = {each.slot: each for each in slots(parent.model, ids, choice.first_slot + 1)}
        here = passes[choice.first_slot]
        held = child.model.layers[3].state_dict()
        # The child's own tensors: what is trained is the child.
        names = first_weights_of(parent, architecture)[choice]
        module = variant(parent.model, choice, {name: held[name] for name in names})
        tables = rotary(parent.model, here.entering_BTD)

        def error() -> Tensor:
            return normalised_error(delta(module, here.entering_BTD, tables), here.delta_BTD)

        before, said = float(error()), logits(child, ids[:2])
        module.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(trained(module), lr=1e-3, weight_decay=0)
        for _ in range(40):
            (error() + regulariser(module)).backward()
            optimizer.step()
            optimizer.zero_grad()
        module.eval().requires_grad_(False)
        assert float(error()) < max(before, 2e-3)
        after = logits(child, ids[:2])
        assert torch.isfinite(after).all()
        assert not torch.equal(after, said)
        prompt = random_ids(parent, tokens=9)
        assert torch.equal(greedy(child, prompt), greedy_by_hand(child, prompt))

    def test_distillation_brings_it_closer(self, name: str, family: str) -> None:
        parent = random_parent(family)
        choice = of_kind(name, 1)
        (found,) = distilled(parent, [choice], tokens=8192).values()
        assert found.loss_trained is not None
        # Weights that are as close from the start only stay there.
        assert found.loss_trained < max(found.loss_first_weights, found.loss_least_squares or 0.0, 2e-3)
        assert all(torch.isfinite(tensor).all() for tensor in found.weights.values())

    def test_it_computes_in_bfloat16_too(self, name: str, family: str) -> None:
        parent = random_parent(family, dtype=torch.bfloat16)
        child = child_of(parent, str(parent.architecture.with_(of_kind(name, 3))))
        assert {tensor.dtype for tensor in child.state_dict().values()} == {torch.bfloat16}
        ids = random_ids(parent)
        assert torch.isfinite(logits(child, ids)).all()
        assert torch.isfinite(logits(child, ids[:1, :1])).all()


def _own_copy(child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    child.load_state_dict(weights, assign=True)
    return child


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_all_kinds_in_one_child() -> None:
    parent = random_parent()
    ffns = [Subblock.parse(text) for role, text in SPELLINGS.values() if role == "ffn"]
    own = parent_block(parent.shape)
    for some in (ffns[:6], ffns[6:]):
        blocks = [Block(own.attention, ffn) for ffn in some] + [Block(SKIP, own.ffn)] * (6 - len(some))
        architecture = Architecture(tuple(blocks))
        weights: dict[Choice, Weights] = first_weights_of(parent, architecture)
        child = assemble(parent, architecture, lambda choice, known=weights: known.get(choice, {}))  # type: ignore[misc]
        ids = random_ids(parent, tokens=9)
        assert torch.equal(greedy(child, ids), greedy_by_hand(child, ids))
