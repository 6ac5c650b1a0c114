"""The table of learning rates that were tried for a parent. Its rows are measured ones, as those of `db/models.py`."""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import JSON, CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from db.models import Base, now

TuneState = Literal["complete", "pruned"]


class TuneTrialRow(Base, kw_only=True):
    """One learning rate at which some subblocks of a parent were trained: a trial of a study."""

    __tablename__ = "tune_trial"
    __table_args__ = (CheckConstraint(f"state IN {get_args(TuneState)}", name="state"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    """The caller's content key of the study and the trial's number in it."""
    study: Mapped[str] = mapped_column(index=True)
    """The caller's content key of the parent, the subblocks, the text and all settings but the rate."""
    number: Mapped[int]
    """From 0, in the order they were tried."""
    parent_digest: Mapped[str] = mapped_column(index=True)
    tokens: Mapped[int]
    batch: Mapped[int]
    schedule: Mapped[str]
    warmup: Mapped[float]
    weight_decay: Mapped[float]
    lora_rank: Mapped[int | None]
    layers: Mapped[list[int]] = mapped_column(JSON)
    choices: Mapped[list[str]]
    """The subblocks that were trained."""
    learning_rate: Mapped[float]
    objective: Mapped[float | None]
    """Mean over the subblocks of the held-out loss after training divided by that before; of a pruned trial, where it
    was stopped. None where a loss was not finite."""
    state: Mapped[TuneState] = mapped_column(Text)
    points: Mapped[list[list[float]]]
    """Pairs of [tokens, objective] on the way."""
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
