"""The learning rate of a search's BLD: the job's own, else the one that `nas tune` found for the parent, else the
default.

Knows rows of tried rates. Does not know how a rate is tried (`nas/stages/tune.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from db.tuning import TuneTrialRow
from nas.job.training import Distill

DEFAULT_RATE = 3e-3
"""It was set on parents of 3 M parameters."""

RateSource = Literal["job", "tuned", "default"]


@dataclass(frozen=True)
class TrainedUnder:
    """The settings that a learning rate is good for, beside the parent and its text. `tokens` are per subblock."""

    tokens: int
    batch: int
    schedule: str
    warmup: float
    weight_decay: float
    lora_rank: int | None

    @staticmethod
    def of(distill: Distill, text_tokens: int) -> "TrainedUnder":
        """Those of a job whose distillation text has so many tokens."""
        tokens = text_tokens if distill.tokens is None else distill.tokens
        return TrainedUnder(
            tokens, distill.batch, distill.schedule, distill.warmup, distill.weight_decay, distill.lora_rank
        )

    def __str__(self) -> str:
        adapters = "" if self.lora_rank is None else f", adapters of rank {self.lora_rank}"
        return f"{self.tokens:,} tokens, batch {self.batch}, {self.schedule}{adapters}"


@dataclass(frozen=True)
class LearningRate:
    """A rate, and who says it. `elsewhere` are the settings that it was tuned under, where they are not the job's."""

    value: float
    source: RateSource
    elsewhere: TrainedUnder | None = None

    def __str__(self) -> str:
        match self.source:
            case "job":
                return f"{self.value:g}, the job's own"
            case "tuned":
                other = "" if self.elsewhere is None else f", under other settings ({self.elsewhere})"
                return f"{self.value:g}, as nas tune found for this parent{other}"
            case "default":
                return f"{self.value:g}, the default; nas tune finds one for this parent"


def resolved_rate(distill: Distill, text_tokens: int, tried: Sequence[TuneTrialRow]) -> LearningRate:
    """The rate of a job whose distillation text has so many tokens. `tried` are all trials of its parent.

    A tune under the job's own settings counts before one with as many adapters, and that one before the latest.
    """
    if distill.learning_rate is not None:
        return LearningRate(distill.learning_rate, "job")
    asked = TrainedUnder.of(distill, text_tokens)
    best = [row for study in _studies(tried) if (row := best_of(study)) is not None]
    if not best:
        return LearningRate(DEFAULT_RATE, "default")
    row = max(best, key=lambda row: (_under(row) == asked, row.lora_rank == asked.lora_rank, row.created_at))
    return LearningRate(row.learning_rate, "tuned", None if _under(row) == asked else _under(row))


def best_of(study: Iterable[TuneTrialRow]) -> TuneTrialRow | None:
    """The trial that trained to the end with the least objective; None where none did."""
    ended = [row for row in study if row.state == "complete" and row.objective is not None]
    return min(ended, key=lambda row: (row.objective, row.number), default=None)


def _studies(tried: Iterable[TuneTrialRow]) -> list[list[TuneTrialRow]]:
    found: dict[str, list[TuneTrialRow]] = {}
    for row in tried:
        found.setdefault(row.study, []).append(row)
    return list(found.values())


def _under(row: TuneTrialRow) -> TrainedUnder:
    return TrainedUnder(row.tokens, row.batch, row.schedule, row.warmup, row.weight_decay, row.lora_rank)
