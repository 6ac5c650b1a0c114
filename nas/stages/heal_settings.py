"""How a child is healed: numbers alone, apart from `heal.py`, since transformers' Trainer takes seconds to load."""

from dataclasses import dataclass


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
