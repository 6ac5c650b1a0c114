"""How a child is healed: values alone, apart from `heal.py`, since transformers' Trainer takes seconds to load."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Healing:
    """`hidden_weight` weighs the hidden states' cosine distance against the KL; `warmup` is a share of the steps.

    `lora_rank` None: every weight is trained; else low-rank adapters of the layers' matrices, merged into them at the
    end.
    """

    tokens: int
    batch: int
    learning_rate: float
    warmup: float
    hidden_weight: float
    lora_rank: int | None = None

    def key(self) -> dict[str, float]:
        """The part of a trial's key that names it. A setting that came later is left out where it is not used."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class HealingRun:
    """How a healing runs, which changes no result but by rounding.

    `recompute`: what layers keep for the backward pass is computed again there, a layer at a time (gradient
    checkpointing, arXiv 1604.06174). It takes a forward pass more, and the result is the same to the bit. `accumulate`:
    a process takes its share of a batch in so many parts, one after the other. `checkpoint_s`: the seconds between two
    checkpoints, 0: one after every step. `report_to`: programs that get the losses, too, by transformers' names;
    `reports` is the folder of those that write files.
    """

    recompute: bool = False
    accumulate: int = 1
    checkpoint_s: float = 600.0
    report_to: tuple[str, ...] = ()
    reports: Path | None = None
