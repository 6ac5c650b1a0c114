"""How a child is healed: numbers alone, apart from `heal.py`, since transformers' Trainer takes seconds to load."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Healing:
    """`hidden_weight` weighs the hidden states' cosine distance against the KL; `warmup` is a share of the steps."""

    tokens: int
    batch: int
    learning_rate: float
    warmup: float
    hidden_weight: float
