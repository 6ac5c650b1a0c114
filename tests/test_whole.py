"""A whole architecture's score is the distance of the assembled child, whatever it shares with the others."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from parents import first_weights_of, random_ids, random_parent
from torch import Tensor

import nas.scoring.architectures
from blocklib.activations import ComputedActivations
from blocklib.assemble import assemble, parent_part
from blocklib.block import SKIP, Architecture, Choice, Parallel
from blocklib.distil import Progress
from blocklib.errors import NotFiniteError
from blocklib.kind import Weights
from blocklib.parent import Parent
from nas.scoring.architectures import score_whole
from nas.scoring.fidelity import Fidelity
from nas.scoring.replace_one import score
from nas.stages.evaluate import evaluate

OWN = "kv4+ffn48"
# Alike at their beginnings, at their ends, and nowhere; cheaper, dropped, fused and parallel blocks.
SPELLINGS = [
    " ".join([OWN] * 6),
    " ".join(["kv2+ffn16", *[OWN] * 5]),
    " ".join(["kv2+ffn16", OWN, "skip+skip", *[OWN] * 3]),
    " ".join(["kv2+ffn16", OWN, "skip+skip", "kv1+fuse(ffn48,ffn24)", "linear+linear"]),
    " ".join(["kv2+ffn16", OWN, "skip+skip", "kv1+fuse(ffn48,ffn48,ffn48)"]),
    " ".join([OWN, f"{OWN}|{OWN}", *[OWN] * 3]),
    " ".join([OWN, "kv2+ffn48|skip+ffn16", OWN, "kv4+skip", "skip+ffn48"]),
    " ".join(["skip+ffn48", *[OWN] * 4, "kv4+skip"]),
    " ".join(["skip+skip"] * 5 + [OWN]),
    " ".join(["skip+skip"] * 6),
]
ARCHITECTURES = [Architecture.parse(spelling) for spelling in SPELLINGS]


def weights_of(parent: Parent, architectures: Sequence[Architecture]) -> Callable[[Choice], Weights]:
    """First weights of what the parent has not, its own tensors of what it has."""
    built: dict[Choice, Weights] = {}
    for architecture in architectures:
        built |= first_weights_of(parent, architecture)

    def of(choice: Choice) -> Weights:
        found: dict[str, Tensor] = {}
        for index, part in enumerate(choice.parts):
            block = f"{index // 2}." if isinstance(choice.what, Parallel) else ""
            own = part.what != SKIP and parent.own(part)
            held = parent_part(parent, part.layer, part.role) if own else built.get(part, {})
            found |= {f"{block}{name}": tensor for name, tensor in held.items()}
        return found

    return of


def whole(
    parent: Parent, architectures: Sequence[Architecture], ids_BT: Tensor, batch: int | None = None
) -> dict[Architecture, Fidelity]:
    *progress, found = score_whole(parent, architectures, weights_of(parent, architectures), ids_BT, batch)
    assert isinstance(found, dict)
    assert all(isinstance(event, Progress) for event in progress)
    assert progress[-1] == Progress(ids_BT.numel(), ids_BT.numel())
    return found


def assert_same(found: Fidelity, expected: Fidelity, name: object) -> None:
    assert found.kl == pytest.approx(expected.kl, rel=1e-5, abs=1e-6), name
    # A rise of the loss is a small difference of two float32 numbers.
    assert vars(found) == pytest.approx(vars(expected), rel=1e-5, abs=5e-6), name


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "granite", "gpt2"])
def test_it_is_the_distance_of_the_assembled_child(family: str) -> None:
    parent = random_parent(family)
    # In GPT-2's layout every query head has a KV head of its own.
    own = str(parent.architecture.blocks[0])
    architectures = [Architecture.parse(spelling.replace(OWN, own)) for spelling in SPELLINGS]
    ids = random_ids(parent, sequences=5, tokens=14)
    found = whole(parent, architectures, ids, batch=2)
    own_loss = evaluate(parent.model, parent.model, ids).lm_loss
    weights = weights_of(parent, architectures)
    assert list(found) == architectures
    for architecture, fidelity in found.items():
        child = assemble(parent, architecture, weights)
        expected = evaluate(parent.model, child, ids)
        rise = expected.lm_loss - own_loss
        assert_same(
            fidelity, Fidelity(expected.kl, rise, expected.top1_agreement, expected.hidden_cosine), architecture
        )
    assert len({round(fidelity.kl, 4) for fidelity in found.values()}) == len(architectures)


def test_the_parents_own_distance_is_nothing() -> None:
    parent = random_parent()
    (fidelity,) = whole(parent, [parent.architecture], random_ids(parent, sequences=3)).values()
    assert vars(fidelity) == pytest.approx(vars(Fidelity(0, 0, 1, 1)), abs=1e-6)


def test_of_one_replacement_it_is_its_score() -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=3, tokens=14)
    texts = ["L0.attention=kv1", "L5.ffn=ffn16", "L3.block=skip+skip", "L2.ffn=fuse(ffn48,ffn48)"]
    choices = [Choice.parse(text) for text in texts]
    replaced = {choice: parent.architecture.with_(choice) for choice in choices}
    weights = weights_of(parent, list(replaced.values()))
    *_, scored = score(parent, {choice: weights(choice) for choice in choices}, ComputedActivations(parent.model, ids))
    assert isinstance(scored, dict)
    found = whole(parent, list(replaced.values()), ids)
    for choice, architecture in replaced.items():
        assert_same(found[architecture], scored[choice], choice)


def test_how_much_runs_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=5, tokens=14)
    expected = whole(parent, ARCHITECTURES, ids)
    monkeypatch.setattr(nas.scoring.architectures, "numbers_at_once", lambda _: 1000)
    for batch in (None, 1, 5):
        for architecture, fidelity in whole(parent, ARCHITECTURES, ids, batch).items():
            assert_same(fidelity, expected[architecture], architecture)


def test_what_is_shared_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that part at their last slot take all before it together; what stands twice is one."""
    parent = random_parent()
    last = [parent.architecture.with_(Choice.parse(f"L5.ffn={name}")) for name in ("ffn16", "ffn24", "skip")]
    passes: list[int] = []
    run = nas.scoring.architectures.delta

    def counted(
        layer: nas.scoring.architectures.Variant, entering_BTD: Tensor, tables: nas.scoring.architectures.Rotary
    ) -> Tensor:
        passes.append(len(entering_BTD))
        return run(layer, entering_BTD, tables)

    monkeypatch.setattr(nas.scoring.architectures, "delta", counted)
    found = whole(parent, [*last, *last], random_ids(parent, sequences=1))
    assert list(found) == last
    assert passes == [1] * (11 + 2)


def test_no_architectures_have_no_scores() -> None:
    parent = random_parent()
    assert list(score_whole(parent, [], weights_of(parent, []), random_ids(parent))) == [{}]


def test_nan_is_an_error_with_a_name() -> None:
    parent = random_parent()
    ids = random_ids(parent)
    weights = weights_of(parent, ARCHITECTURES)

    def damaged(choice: Choice) -> Weights:
        tensors = {name: tensor.clone() for name, tensor in weights(choice).items()}
        if str(choice) == "L5.attention=linear":
            tensors["self_attn.linear_attn.weight"][0, 0] = math.nan
        return tensors

    with pytest.raises(NotFiniteError) as caught:
        list(score_whole(parent, ARCHITECTURES, damaged, ids))
    assert str(caught.value).startswith(f"{SPELLINGS[3]}: its distance to the parent is not finite (KL nan")


def test_nan_in_the_parent_names_the_parent() -> None:
    parent = random_parent()
    parent.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"^parent: "):
        list(score_whole(parent, ARCHITECTURES[8:9], weights_of(parent, []), random_ids(parent)))
