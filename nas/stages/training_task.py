"""The common part of tasks that train subblocks: the parent and the texts, with its activations on them."""

from dataclasses import dataclass
from pathlib import Path

from blocklib.distil import Texts
from blocklib.parent import Parent
from nas.stages.activations import TextActivations, activations_on
from nas.stages.context import Context
from nas.stages.prepare import CHECKED
from nas.text.token_files import Ids


@dataclass(frozen=True)
class TrainingTask:
    """`activations` are the parent's on the texts that train and score; the head of the score text gives the held-out
    losses. `batch` sequences make a step. `root` is the folder of the library that the subblocks are in."""

    parent: Parent
    calibration: Ids
    distillation: Ids
    score: Ids
    activations: tuple[TextActivations, TextActivations]
    batch: int
    root: Path
    device: str

    def texts(self, parent: Parent) -> Texts:
        """The texts for `parent`, which is the task's on its device."""
        training, scoring = self.activations
        return Texts(
            training.of(parent, self.calibration),
            training.of_all(parent, self.distillation),
            scoring.of(parent, self.score[:CHECKED]),
            self.batch,
        )


def training_activations(context: Context, alone: float) -> tuple[TextActivations, TextActivations]:
    """The activations on the texts that train and that score. The first are those on the text's head alone where that
    is less work than to run the parent over `alone` tokens, or where the disk has no room."""
    return (
        activations_on(context, "distillation", len(context.job.tokens.calibration), alone),
        activations_on(context, "score", CHECKED),
    )
