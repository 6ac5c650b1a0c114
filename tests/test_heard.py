"""Long work on a large parent says within a batch, too, how far it is: one may take minutes."""

from itertools import pairwise

from parents import random_ids, random_parent, texts_of

from blocklib.activations import ComputedActivations
from blocklib.block import SKIP, Choice, Subblock
from blocklib.distil import Distilled, Training, distil
from nas.scoring.block_dependency import block_dependency
from nas.scoring.layer_removal import loss_without
from nas.scoring.replace_one import score
from nas.stages.evaluate import Evaluator


class Told:
    """Keeps (done, total) as it is told."""

    def __init__(self) -> None:
        self.states: list[tuple[float, float]] = []

    def __call__(self, done: float, total: float) -> None:
        self.states.append((done, total))

    @property
    def shares(self) -> list[float]:
        return [done / total for done, total in self.states]


def test_scoring_one_batch() -> None:
    """Steps are the work that was done: none is large, and all together they are all of it."""
    parent, ids, told = random_parent(), random_ids(random_parent()), Told()
    choices = [Choice(layer, "ffn", SKIP) for layer in range(parent.shape.layers)]
    events = list(score(parent, {choice: {} for choice in choices}, ComputedActivations(parent.model, ids), told))
    assert len(events) == 2, "a batch, and the scores"
    assert len(told.shares) > 2 * parent.shape.layers
    assert told.shares == sorted(told.shares)
    assert 1 - 1 / ids.shape[1] < told.shares[-1] <= 1, "the last token of a sequence has none to foretell"


def test_training_many_subblocks_in_one_batch() -> None:
    parent, told = random_parent(), Told()
    texts = [random_ids(parent, 16, 16, seed=seed) for seed in (1, 2, 3)]
    trainings = {
        Choice(layer, "ffn", Subblock("ffn", str(number))): Training(256, 1e-3)
        for layer in range(parent.shape.layers)
        for number in (16, 24)
    }
    words: list[str] = []
    events = list(distil(parent, trainings, texts_of(parent, *texts, batch=16), doing=words.append, heard=told))
    assert sum(isinstance(event, Distilled) for event in events) == len(trainings)
    assert len(told.states) == len(trainings), "once for each, though there is but one batch"
    assert told.shares == sorted(told.shares)
    assert max(later - earlier for earlier, later in pairwise(told.shares)) < 2 / len(trainings)
    assert f"first weights of {len(trainings)} of {len(trainings)} subblocks" in words
    assert words[-1] == "losses after training"


def test_what_goes_batch_by_batch() -> None:
    parent = random_parent()
    ids = random_ids(parent)
    evaluated, depended, removed = Told(), Told(), Told()
    Evaluator(parent.model, ids, batch=1).evaluate(parent.model, evaluated)
    block_dependency(parent.model, ids, depended)
    loss_without(parent, ids, (2,), (1, 3), batch=1, heard=removed)
    assert evaluated.states == [((done + 1) * ids.shape[1], ids.numel()) for done in range(len(ids))]
    assert depended.states[-1] == (ids.numel(), ids.numel())
    assert len(removed.states) == 2 * len(ids)
    assert removed.states[-1] == (2 * ids.numel(), 2 * ids.numel())
