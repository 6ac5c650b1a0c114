"""A score by the sweep is the distance of the whole model that has one choice replaced."""

import math

import pytest
import torch
from parents import logits, random_ids, random_parent
from torch import Tensor, nn
from torch.nn import functional

import nas.scoring.fidelity
import nas.scoring.replace_one
from blocklib.activations import ComputedActivations, cached
from blocklib.assemble import assemble, parent_part
from blocklib.block import SKIP, Choice, Role
from blocklib.distil import Progress
from blocklib.errors import NotFiniteError
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.parent import Parent
from nas.scoring.fidelity import Fidelity, FidelityMeter
from nas.scoring.replace_one import score
from nas.stages.evaluate import Evaluator, evaluate, perplexity

TEXTS = [
    "L0.attention=kv1", "L2.attention=kv2", "L5.attention=linear", "L0.attention=skip", "L3.attention=skip",
    "L1.ffn=ffn16", "L4.ffn=linear", "L5.ffn=skip", "L0.ffn=skip",
    "L0.block=skip+skip", "L5.block=skip+skip", "L2.block=linear+ffn16", "L3.block=kv1+skip", "L1.block=skip+linear",
    "L1.ffn=fuse(ffn48,ffn48)", "L3.ffn=fuse(ffn48,ffn24,ffn48)", "L0.ffn=fuse_last(ffn48,ffn48)",
]  # fmt: skip
CHOICES = [Choice.parse(text) for text in TEXTS]


def weights_of(parent: Parent, choices: list[Choice], ids_BT: Tensor) -> dict[Choice, Weights]:
    """First weights of every part of every choice; the parent's own where it has them."""
    found = {part for choice in choices for part in choice.parts if part.what != SKIP and not parent.own(part)}
    built = {
        unit.choice: unit.first
        for unit in build(parent, list(found), cached(parent.model, ids_BT, 2), batch=2, fit=False)
    }
    weights: dict[Choice, Weights] = {}
    for choice in choices:
        whole: dict[str, Tensor] = {}
        for part in choice.parts:
            whole |= parent_part(parent, part.layer, part.role) if parent.own(part) else built.get(part, {})
        weights[choice] = whole
    return weights


def scores(parent: Parent, weights: dict[Choice, Weights], ids_BT: Tensor) -> dict[Choice, Fidelity]:
    *progress, found = score(parent, weights, ComputedActivations(parent.model, ids_BT))
    assert isinstance(found, dict)
    assert all(isinstance(event, Progress) for event in progress)
    assert progress[-1] == Progress(ids_BT.numel(), ids_BT.numel())
    return found


def by_whole_models(parent: Parent, weights: dict[Choice, Weights], ids_BT: Tensor) -> dict[Choice, Fidelity]:
    """The slow way: assemble the parent with one choice replaced, and run all of it."""
    own_loss, found = evaluate(parent.model, parent.model, ids_BT).lm_loss, {}
    for choice, tensors in weights.items():
        attention = {name: tensor for name, tensor in tensors.items() if name.startswith(("input_", "self_attn"))}
        ffn = {name: tensor for name, tensor in tensors.items() if name not in attention}
        held: dict[Role, Weights] = {"attention": attention, "ffn": ffn}

        def of_role(part: Choice, held: dict[Role, Weights] = held) -> Weights:
            return held[part.role]

        child = assemble(parent, parent.architecture.with_(choice), of_role)
        whole = evaluate(parent.model, child, ids_BT)
        found[choice] = Fidelity(whole.kl, whole.lm_loss - own_loss, whole.top1_agreement, whole.hidden_cosine)
    return found


def assert_same(found: dict[Choice, Fidelity], expected: dict[Choice, Fidelity]) -> None:
    assert found.keys() == expected.keys()
    for choice, fidelity in found.items():
        assert fidelity.kl == pytest.approx(expected[choice].kl, rel=1e-5, abs=1e-6), choice
        # A rise of the loss is a small difference of two float32 numbers.
        assert vars(fidelity) == pytest.approx(vars(expected[choice]), rel=1e-5, abs=5e-6), choice


@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "smollm3"])
def test_the_sweep_is_a_whole_forward_of_each(family: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent, sequences=3, tokens=14)
    weights = weights_of(parent, CHOICES, ids)
    found = scores(parent, weights, ids)
    assert_same(found, by_whole_models(parent, weights, ids))
    # Distinct enough that one could not be taken for another.
    assert len({round(fidelity.kl, 4) for fidelity in found.values()}) > len(CHOICES) - 3


def test_of_a_trained_parent_too(trained_parent: Parent, text_ids: Tensor) -> None:
    shape = trained_parent.shape
    texts = ["L0.attention=kv1", "L2.ffn=ffn16", f"L1.ffn=fuse(ffn{shape.ffn_width},ffn{shape.ffn_width})",
             "L3.block=skip+skip", f"L{shape.layers - 1}.attention=skip"]  # fmt: skip
    weights = weights_of(trained_parent, [Choice.parse(text) for text in texts], text_ids[:4])
    found = scores(trained_parent, weights, text_ids[:4])
    assert_same(found, by_whole_models(trained_parent, weights, text_ids[:4]))
    assert all(fidelity.kl > 1e-4 for fidelity in found.values())


def test_the_parents_own_score_is_nothing() -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=3, tokens=14)
    whole = evaluate(parent.model, parent.model, ids)
    assert (whole.kl, whole.top1_agreement) == (0.0, 1.0)
    assert whole.hidden_cosine == pytest.approx(1)
    again = assemble(parent, parent.architecture, dict[Choice, Weights]().__getitem__)
    assert evaluate(parent.model, again, ids) == whole
    own = list(parent.architecture.choices())
    for fidelity in scores(parent, weights_of(parent, own, ids), ids).values():
        assert vars(fidelity) == pytest.approx(vars(Fidelity(0, 0, 1, 1)), abs=1e-6)


def test_how_much_runs_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=5, tokens=14)
    weights = weights_of(parent, CHOICES, ids)
    expected = scores(parent, weights, ids)
    monkeypatch.setattr(nas.scoring.replace_one, "_STACK_AT_ONCE", 1)
    for module in (nas.scoring.replace_one, nas.scoring.fidelity):
        monkeypatch.setattr(module, "numbers_at_once", lambda _: 400)
    assert (
        sum(isinstance(event, Progress) for event in score(parent, weights, ComputedActivations(parent.model, ids)))
        == 5
    )
    assert_same(scores(parent, weights, ids), expected)


def test_what_is_measured_is_what_torch_measures() -> None:
    parent, other = random_parent(seed=0), random_parent(seed=1)
    ids = random_ids(parent, sequences=3, tokens=14)
    theirs, ours = (logits(model.model, ids)[:, :-1].flatten(0, 1).log_softmax(-1) for model in (parent, other))
    found = Evaluator(parent.model, ids, batch=2).evaluate(other.model)
    assert found.kl == pytest.approx(float(functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")))
    assert found.lm_loss == pytest.approx(float(functional.cross_entropy(ours, ids[:, 1:].flatten())))
    assert found.top1_agreement == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    assert perplexity(found.lm_loss) == pytest.approx(math.exp(found.lm_loss))


@pytest.mark.parametrize("shift", [-10.0, 0.0, 10.0])
@pytest.mark.parametrize("change", [1e-4, 1e-2, 1.0, 20.0])
def test_a_kl_has_its_digits_however_small_or_large(change: float, shift: float) -> None:
    """In float32, with logits of 20 and more that change by a ten-thousandth or by hundreds, beside float64. A shift of
    all logits, by the first channel, changes nothing."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(33, 500, bias=False).requires_grad_(False)
    head.weight.data = torch.randn(500, 33, generator=generator)
    head.weight.data[:, 0] = 1
    parent_BTD = torch.randn(4, 100, 33, generator=generator) + 0.5
    model_BTD = parent_BTD + change * torch.randn(4, 100, 33, generator=generator)
    model_BTD[..., 0] += shift
    ids = torch.randint(500, (4, 100), generator=generator)
    meter = FidelityMeter(["model"], head)
    meter.add(ids, parent_BTD, [model_BTD])
    (found,) = meter.result().values()
    ours, theirs = (
        (hidden[:, :-1].flatten(0, 1).double() @ head.weight.double().T).log_softmax(-1)
        for hidden in (model_BTD, parent_BTD)
    )
    exact = float(functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))
    assert found.kl == pytest.approx(exact, rel=1e-3)
    assert found.lm_loss == pytest.approx(float(functional.cross_entropy(ours, ids[:, 1:].flatten())), rel=1e-5)
    assert found.top1_agreement == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))


def test_no_choices_have_no_scores() -> None:
    parent = random_parent()
    assert list(score(parent, {}, ComputedActivations(parent.model, random_ids(parent)))) == [{}]


def test_nan_is_an_error_with_a_name() -> None:
    parent = random_parent()
    ids = random_ids(parent)
    weights = weights_of(parent, CHOICES, ids)
    damaged = {name: tensor.clone() for name, tensor in weights[CHOICES[5]].items()}
    damaged["mlp.gate_proj.weight"][0, 0] = torch.nan
    with pytest.raises(
        NotFiniteError, match=r"^L1\.ffn=ffn16: its distance to the parent is not finite \(KL nan, loss nan\)"
    ):
        scores(parent, weights | {CHOICES[5]: damaged}, ids)


def test_nan_in_the_parent_names_the_parent() -> None:
    parent = random_parent()
    parent.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"^parent: "):
        scores(parent, {Choice.parse("L5.ffn=skip"): {}}, random_ids(parent))
