"""SLEB drops whom it should, by the loss of the model that is really left."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from parents import FAMILIES, logits, parent_from, random_ids, random_model, random_parent
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from blocklib.assemble import assemble
from blocklib.block import Architecture
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from nas.scoring.block_influence import block_influence
from nas.scoring.layer_removal import loss_without
from solvers.baselines.shortgpt import drop_layers
from solvers.baselines.sleb import LossWithout, Removal, drop_one_by_one, removal_rounds
from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.problem import Option, Problem, verify

LAYERS, REMOVED, NEW_TOKENS = 8, 4, 10


def problem_of(own: Sequence[str], most: int, kept: Sequence[int] = ()) -> Problem:
    """Whole layers of cost 1, of which `most` may stay; those in `kept` have no option that leaves them out."""
    options = [Option(2 * layer, 2, name, 0.0, {"layers": 1.0}) for layer, name in enumerate(own)]
    skips = [layer for layer in range(len(own)) if layer not in kept]
    options += [Option(2 * layer, 2, "skip+skip", 1.0, {"layers": 0.0}, ("skip", "skip")) for layer in skips]
    return Problem(2 * len(own), tuple(options), {"layers": float(most)})


def whole(problem: Problem) -> list[Option]:
    return [option for option in problem.options if option.name != "skip+skip"]


def sleb(loss: LossWithout, most: int, layers: int = LAYERS, kept: Sequence[int] = ()) -> Removal:
    problem = problem_of(["kv4+ffn48"] * layers, most, kept)
    return drop_one_by_one(problem, whole(problem), loss)


@pytest.mark.parametrize("most", range(2, LAYERS + 1))
def test_what_stands_behind_the_layers_stays(most: int) -> None:
    """An option of two slots after the last layer changes neither what goes nor which layer is the last."""
    problem = problem_of(["kv4+ffn48"] * LAYERS, most)
    behind = Option(2 * LAYERS, 2, "tables@q8_0", 0.0, {"layers": 1.0})
    more = Problem(2 * LAYERS + 2, (*problem.options, behind), {"layers": most + 1.0})
    harms = [0.1, 0.8, 0.3, 0.5, 0.2, 0.7, 0.4, 0.0]
    alone, found = (
        drop_one_by_one(one, whole(one), added(harms), layers=LAYERS).solution.options for one in (problem, more)
    )
    assert found == (*alone, behind)
    alone, found = (drop_layers(one, whole(one), harms, layers=LAYERS).options for one in (problem, more))
    assert found == (*alone, behind)


def added(harms: Sequence[float]) -> LossWithout:
    """A loss to which every layer adds its own harm when it goes."""
    return lambda removed, candidates: [sum(harms[layer] for layer in (*removed, one)) for one in candidates]


def rounds_of(parent: Parent, ids_BT: Tensor, count: int = REMOVED) -> tuple[list[int], list[dict[int, float]]]:
    """The order and every round's losses of metric 3."""
    inner = range(1, parent.shape.layers - 1)
    found = list(islice(removal_rounds(inner, partial(loss_without, parent, ids_BT)), count))
    return [each.removed for each in found], [dict(each.losses) for each in found]


def ranked(harms: Mapping[int, float]) -> list[int]:
    """Layers ranked all at once, as metrics 1 and 2 do: the least harm first."""
    return sorted(harms, key=harms.__getitem__)


def loss_after(parent: Parent, ids_BT: Tensor, removed: Sequence[int]) -> float:
    return loss_without(parent, ids_BT, removed[:-1], removed[-1:])[0]


def cross_entropy(model: Any, ids_BT: Tensor) -> float:
    """The oracle: of a whole model's logits, one sequence at a time, each mean in float32."""
    means = [functional.cross_entropy(logits(model, ids[None])[0, :-1].float(), ids[1:]) for ids in ids_BT]
    return float(torch.stack(means).mean())


def deleted(model: Any, removed: Sequence[int]) -> Any:
    """transformers' own model less some of its layers."""
    reduced = deepcopy(model)
    for layer in sorted(removed, reverse=True):
        del reduced.model.layers[layer]
    for index, left in enumerate(reduced.model.layers):
        left.self_attn.layer_idx = index
    reduced.config.num_hidden_layers = len(reduced.model.layers)
    return reduced


def by_deleting(model: Any, ids_BT: Tensor, count: int) -> tuple[list[int], list[dict[int, float]]]:
    """SLEB over again, as its paper's code goes about it."""
    alive: list[int] = list(range(model.config.num_hidden_layers))
    removed: list[int] = []
    rounds: list[dict[int, float]] = []
    for _ in range(count):
        losses, least, gone = {}, math.inf, -1
        for layer in alive[1:-1]:
            losses[layer] = cross_entropy(deleted(model, [*removed, layer]), ids_BT)
            if losses[layer] < least:
                least, gone = losses[layer], layer
        alive.remove(gone)
        removed.append(gone)
        rounds.append(losses)
    return removed, rounds


def dropped_child(parent: Parent, removed: Sequence[int]) -> PuzzleNasForCausalLM:
    own = str(parent.architecture).split()
    blocks = ["skip+skip" if layer in removed else block for layer, block in enumerate(own)]
    return assemble(parent, Architecture.parse(" ".join(blocks)), lambda choice: {})


def with_identity(model: Any, layer: int) -> Any:
    """The model with one layer that does nothing."""
    planted = deepcopy(model)
    block = planted.model.layers[layer]
    for projection in (block.self_attn.o_proj, block.mlp.down_proj):
        for parameter in projection.parameters():
            torch.nn.init.zeros_(parameter)
    return planted


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_models_with_deleted_layers(seed: int) -> None:
    model = random_model(FAMILIES["llama"](num_hidden_layers=LAYERS), seed)
    ids = random_ids(parent_from(model), sequences=4, tokens=24)
    order, rounds = rounds_of(parent_from(model), ids)
    expected_order, expected = by_deleting(model, ids, REMOVED)
    assert order == expected_order
    assert [list(losses) for losses in rounds] == [list(losses) for losses in expected]
    for losses, others in zip(rounds, expected, strict=True):
        assert losses == pytest.approx(others, rel=1e-5)


def test_so_it_is_of_a_trained_model(trained_parent: Parent, text_ids: Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_parent.source, dtype=torch.float32).eval()
    ids = text_ids[:4]
    order, rounds = rounds_of(trained_parent, ids, 2)
    expected_order, expected = by_deleting(model, ids, 2)
    assert order == expected_order
    for losses, others in zip(rounds, expected, strict=True):
        assert losses == pytest.approx(others, rel=1e-5)
    assert cross_entropy(model, ids) < min(rounds[0].values()) < 0.6 * math.log(trained_parent.shape.vocabulary)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_is_that_of_the_assembled_child_in_any_family(family: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent, sequences=3, tokens=20)
    for removed, candidates in [((), (0, 3, 5)), ((4, 0), (1, 5)), ((1, 2, 3, 4, 5), (0,))]:
        expected = [cross_entropy(dropped_child(parent, (*removed, one)), ids) for one in candidates]
        assert loss_without(parent, ids, removed, candidates) == pytest.approx(expected, rel=1e-5)


def test_losses_come_in_the_candidates_order_and_batches_change_none() -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=7, tokens=12)
    one, other = loss_without(parent, ids, (2,), (1, 4))
    assert one != other
    for batch in (1, 3, 7, 100):
        assert loss_without(parent, ids, (2,), (4, 1), batch=batch) == pytest.approx([other, one], rel=1e-6)
    assert loss_without(parent, ids, (2,), ()) == []


def test_the_loss_is_taken_in_float32() -> None:
    """From bfloat16 logits, a log-softmax in bfloat16 is off by more than a hundredth."""
    parent = random_parent(dtype=torch.bfloat16)
    ids = random_ids(parent, sequences=4, tokens=24)
    child_logits = logits(dropped_child(parent, (3,)), ids)[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()
    expected = float(functional.cross_entropy(child_logits.double(), targets))
    assert loss_without(parent, ids, (), (3,)) == pytest.approx([expected], rel=1e-6)
    assert float(functional.cross_entropy(child_logits, targets)) != pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_is_no_loss() -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=4)
    assert parent.model.model.layers[3].mlp is not None
    parent.model.model.layers[3].mlp.down_proj.weight[0, 0] = math.nan
    assert math.isfinite(loss_without(parent, ids, (1,), (3,))[0])
    with pytest.raises(
        NotFiniteError, match=r"without layer 4 and, before it, 2, 1 the loss is nan \(sequences 0..1\)"
    ):
        loss_without(parent, ids, (2, 1), (3, 4), batch=2)
    with pytest.raises(NotFiniteError, match=r"without layer 1 the loss is nan \(sequences 0..3\)"):
        loss_without(parent, ids, (), (1,))


def test_a_loss_of_nothing_is_refused() -> None:
    parent = random_parent()
    ids = random_ids(parent)
    with pytest.raises(ValueError, match=r"\[2, 1\] hold no next token"):
        loss_without(parent, ids[:, :1], (), (1,))
    with pytest.raises(ValueError, match=r"\[0, 12\] hold no next token"):
        loss_without(parent, ids[:0], (), (1,))
    with pytest.raises(ValueError, match=r"layer 6 is not among the parent's layers 0..5"):
        loss_without(parent, ids, (1,), (6,))
    with pytest.raises(ValueError, match="layer 1 is asked to go twice"):
        loss_without(parent, ids, (1,), (2, 1))


def test_as_many_evaluations_as_published() -> None:
    calls: list[tuple[Sequence[int], Sequence[int]]] = []

    def loss(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        calls.append((removed, candidates))
        return added([5, 4, 3, 7, 6, 1, 2, 0])(removed, candidates)  # type: ignore[return-value]

    removal = sleb(loss, most=LAYERS - REMOVED)
    assert removal.order == (5, 6, 2, 1)
    assert calls == [
        ((), (1, 2, 3, 4, 5, 6)),
        ((5,), (1, 2, 3, 4, 6)),
        ((5, 6), (1, 2, 3, 4)),
        ((5, 6, 2), (1, 3, 4)),
    ]
    assert removal.evaluations == sum(len(candidates) for _, candidates in calls) == 18
    assert sleb(added([0.0] * 32), most=32 - 7, layers=32).evaluations == 189


def test_the_first_and_the_last_layer_stay() -> None:
    removal = sleb(added([-9.0, 1, 2, 3, -9.0]), most=2, layers=5)
    assert removal.order == (1, 2, 3)
    assert [option.name for option in removal.solution.options] == ["kv4+ffn48", *["skip+skip"] * 3, "kv4+ffn48"]
    with pytest.raises(Infeasible, match="with 3 layers dropped, the most possible: layers is 2, over the maximum 1"):
        sleb(added([-9.0, 1, 2, 3, -9.0]), most=1, layers=5)


def test_what_need_not_or_cannot_go_is_not_asked_for() -> None:
    removal = sleb(added([0.0, 1, 2, 3, 4, 0]), most=4, layers=6, kept=(1, 3))
    assert removal.order == (2, 4)
    assert [list(each.losses) for each in removal.rounds] == [[2, 4], [4]]
    assert sleb(added([math.nan] * LAYERS), most=LAYERS).rounds == ()


def test_of_equals_the_shallowest_goes() -> None:
    assert sleb(added([1.0] * LAYERS), most=4).order == (1, 2, 3, 4)
    assert sleb(added([1, 1, 0.5, 1, 0.5, 1, 0.5, 1]), most=4).order == (2, 4, 6, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_never_the_least(bad: float) -> None:
    def loss(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        return [bad if layer == 4 and len(removed) == 1 else float(layer) for layer in candidates]

    with pytest.raises(ValueError, match=f"the loss without layer 4 is {bad} in round 2"):
        sleb(loss, most=4)
    with pytest.raises(ValueError, match="round 1: 2 losses for 6 candidates"):
        sleb(lambda removed, candidates: [1.0, 2.0], most=4)


def test_metric_3_sees_that_one_of_two_must_stay() -> None:
    """By hand: layers 1 and 2 do the same, so that either can go and not both; metric 2 drops both."""

    def loss(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        gone = [{*removed, one} for one in candidates]
        return [sum([0, 0.1, 0.2, 1, 2, 3, 4, 0][layer] for layer in some) + 9 * ({1, 2} <= some) for some in gone]

    removal = sleb(loss, most=6)
    assert removal.order == (1, 3)
    assert ranked(removal.rounds[0].losses)[:2] == [1, 2]


@pytest.mark.parametrize("most", range(2, 9))
def test_sleb_is_a_baseline_like_the_others(most: int) -> None:
    problem = problem_of(["kv4+ffn48"] * LAYERS, most)
    solution = drop_one_by_one(problem, whole(problem), added([1.0] * LAYERS)).solution
    verify(problem, solution)
    assert solution.solver == "sleb"
    assert solution.costs == {"layers": most}, "more than had to go"
    assert solver.solve(problem).score <= solution.score
    assert solution.bound <= solver.solve(problem).score
    with pytest.raises(ValueError, match="do not tile the slots"):
        drop_one_by_one(problem, whole(problem)[1:], added([1.0] * LAYERS))


@pytest.mark.parametrize("layer", [1, 3, 6])
def test_a_layer_that_does_nothing_goes_first(trained_parent: Parent, text_ids: Tensor, layer: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_parent.source, dtype=torch.float32).eval()
    planted = with_identity(model, layer)
    parent, ids = parent_from(planted), text_ids[:8]
    order, rounds = rounds_of(parent, ids, 1)
    assert order == [layer]
    assert rounds[0][layer] == pytest.approx(cross_entropy(planted, ids), rel=1e-6), "it moves the loss"
    influence = block_influence(parent, ids)
    assert influence[layer] == pytest.approx(0, abs=1e-6)
    assert influence.index(min(influence)) == layer
    assert min(influence[:layer] + influence[layer + 1 :]) > 1e-3


def test_each_metric_drops_others_and_metric_3_does_least_harm(trained_parent: Parent, text_ids: Tensor) -> None:
    ids = text_ids[:8]
    order, rounds = rounds_of(trained_parent, ids)
    loss_once = ranked(rounds[0])[:REMOVED]
    influence = block_influence(trained_parent, ids)
    influence_once = ranked({layer: influence[layer] for layer in rounds[0]})[:REMOVED]
    assert len({frozenset(order), frozenset(loss_once), frozenset(influence_once)}) == 3
    least = rounds[-1][order[-1]]
    assert least == pytest.approx(loss_after(trained_parent, ids, order), rel=1e-6)
    assert least < loss_after(trained_parent, ids, loss_once) < loss_after(trained_parent, ids, influence_once)


@pytest.mark.parametrize("seed", range(6))
def test_metric_3_does_no_more_harm_than_metric_2(seed: int) -> None:
    """With two layers to drop that is a theorem, as both drop the same one first; with four it held on these seeds."""
    parent = random_parent(seed=seed, num_hidden_layers=LAYERS)
    ids = random_ids(parent, sequences=4, tokens=24)
    order, rounds = rounds_of(parent, ids)
    at_once = ranked(rounds[0])
    for count in (2, REMOVED):
        least = loss_after(parent, ids, order[:count])
        assert least <= loss_after(parent, ids, at_once[:count]) * (1 + 1e-6)


def test_the_child_has_the_loss_of_the_last_round() -> None:
    parent = random_parent(num_hidden_layers=LAYERS)
    ids = random_ids(parent, sequences=4, tokens=24)
    problem = problem_of(str(parent.architecture).split(), LAYERS - REMOVED)
    removal = drop_one_by_one(problem, whole(problem), partial(loss_without, parent, ids))
    child = assemble(
        parent, Architecture.parse(" ".join(option.name for option in removal.solution.options)), lambda choice: {}
    )
    last = removal.rounds[-1]
    assert cross_entropy(child, ids) == pytest.approx(last.losses[last.removed], rel=1e-5)


@pytest.mark.parametrize("removed", [(1, 2), (0,), (0, 1, 2), (6, 3, 1), (7,)], ids=str)
def test_a_child_with_dropped_layers_keeps_its_cache(removed: Sequence[int], tmp_path: Path) -> None:
    """With and without a cache, saved and loaded again, it says what transformers' own model with the layers deleted
    says without one."""
    model = random_model(FAMILIES["llama"](num_hidden_layers=LAYERS))
    parent = parent_from(model)
    prompt = random_ids(parent, tokens=9)
    child: Any = dropped_child(parent, removed)
    expected, reduced = prompt, deleted(model, removed)
    for _ in range(NEW_TOKENS):
        expected = torch.cat([expected, logits(reduced, expected)[:, -1:].argmax(-1)], dim=1)
    child.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == LAYERS
    for each in (child, loaded):
        for cached in (True, False):
            said = each.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False,
                use_cache=cached, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            assert torch.equal(said, expected)
