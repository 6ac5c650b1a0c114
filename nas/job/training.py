"""The sections of a job file that say how weights are trained. Imports no torch."""

from typing import Literal

from pydantic import Field

from nas.job.sections import Section
from nas.job.values import Count, Flag, Fraction, NotNegative, Positive, Schedule, Seconds, TokenCount


class KindTraining(Section):
    """Settings of BLD for one kind of subblock. None: the same as for all kinds."""

    tokens: TokenCount | None = None
    learning_rate: Positive | None = None
    schedule: Schedule | None = None
    lora_rank: Count | None = None


class Distill(Section):
    """Blockwise local distillation. `tokens` None: all distillation tokens; 0: first weights only, nothing is trained.

    `learning_rate` None: the one that `nas tune` found for the parent, else `nas.job.learning_rate.DEFAULT_RATE`.
    `warmup` is a share of the steps. `lora_rank` None: every weight is trained; else low-rank adapters of that rank,
    merged into the weights afterwards. `kinds` says by kind what it does otherwise.
    """

    least_squares: Flag = True
    tokens: TokenCount | None = None
    batch: Count = 8
    learning_rate: Positive | None = None
    warmup: Fraction = 0.05
    schedule: Schedule = "cosine"
    weight_decay: NotNegative = 0.0
    lora_rank: Count | None = None
    kinds: dict[str, KindTraining] = Field(default={}, validate_default=True)

    def for_kind(self, kind: str) -> "Distill":
        """These settings with what `kinds` says otherwise of one kind put in.

        A variant of a kind that is not named itself goes by it, as `fuse_last` by `fuse`.
        """
        special = self.kinds.get(kind) or self.kinds.get(kind.partition("_")[0]) or KindTraining()
        return self.model_copy(update=special.model_dump(exclude_none=True))


class Heal(Section):
    """Global distillation of the assembled child. `hidden_weight`: of the hidden states' loss beside the logits'.

    `rounding`, where precisions are chosen: the weights are rounded after healing, or before it, and then healed
    `through` their rounding. `lora_rank` None: every weight is trained; else low-rank adapters of that rank, merged
    into the weights afterwards. `report_to`: programs that get the losses, too.

    Three keys change no result but by rounding. `recompute`: activations are computed again in the backward pass; None:
    where memory would not hold them. `workers`: so many processes divide the weights, their moments and every batch.
    `accumulate`: a worker takes its share of a batch in so many parts, one after the other.

    `checkpoint_every`: after so many seconds a checkpoint is written, from which a healing that was killed goes on.
    """

    tokens: Count | None = None
    batch: Count = 8
    learning_rate: Positive = 2e-4
    warmup: Fraction = 0.05
    hidden_weight: NotNegative = 1.0
    rounding: Literal["after", "through"] = "after"
    lora_rank: Count | None = None
    recompute: Flag | None = None
    workers: Count = 1
    accumulate: Count = 1
    checkpoint_every: Seconds = 600.0
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    @property
    def parts(self) -> int:
        """The parts in which a batch is taken, those of all workers."""
        return self.workers * self.accumulate


class RoundTraining(Section):
    """The child's layers are trained through their rounding, one after the other, on the last `tokens` of the
    distillation text, `batch` sequences a step; 0: not at all. For searches that choose precisions."""

    tokens: TokenCount = 0
    batch: Count = 1
    learning_rate: Positive = 1e-3
