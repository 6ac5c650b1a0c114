"""The tables of lm_eval: its results on children and their parents, and which tasks a group of it holds. Their rows are
measured ones, as those of `db/models.py`."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from db.models import Base, now


class EvaluationRow(Base, kw_only=True):
    """One metric of one task of lm_eval, of a child and its parent."""

    __tablename__ = "evaluation"

    key: Mapped[str] = mapped_column(primary_key=True)
    child_key: Mapped[str] = mapped_column(index=True)
    run: Mapped[str]
    """The caller's content key of the task, its settings and both models; all metrics of a run have it."""
    task: Mapped[str]
    version: Mapped[str]
    metric: Mapped[str]
    higher_is_better: Mapped[bool | None]
    shots: Mapped[int]
    limit: Mapped[int | None]
    """The most samples that were asked for; None: all."""
    is_chat: Mapped[bool]
    """Whether prompts were wrapped in the tokenizer's chat template."""
    samples: Mapped[int]
    parent_value: Mapped[float]
    child_value: Mapped[float]
    parent_error: Mapped[float | None]
    """Standard errors; None where lm_eval gives none."""
    child_error: Mapped[float | None]
    difference_error: Mapped[float | None]
    is_paired: Mapped[bool]
    """Whether `difference_error` is of the differences sample by sample, and not the root of the sum of squares."""
    harness: Mapped[str]
    """The version of lm_eval."""
    created_at: Mapped[datetime] = mapped_column(default_factory=now)

    @property
    def difference(self) -> float:
        """Child less parent."""
        return self.child_value - self.parent_value


class TaskGroupRow(Base, kw_only=True):
    """A name that lm_eval knows as several tasks."""

    __tablename__ = "task_group"

    key: Mapped[str] = mapped_column(primary_key=True)
    """The caller's content key of the name and of lm_eval's version."""
    tasks: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
