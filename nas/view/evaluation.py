"""Results of lm_eval, the child beside its parent, one line for each metric of each task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from db.evaluations import EvaluationRow


@dataclass(frozen=True)
class Evaluation:
    """One metric of one task over so many samples. `difference` is child less parent.

    Standard errors are None where lm_eval gives none. `is_paired`: the difference's comes from the samples, which both
    models answered; else it is the root of the sum of both squares. `version` is the task's, `harness` is lm_eval's.
    """

    task: str
    metric: str
    parent: float
    child: float
    difference: float
    parent_error: float | None
    child_error: float | None
    difference_error: float | None
    is_paired: bool
    higher_is_better: bool | None
    samples: int
    limit: int | None
    is_chat: bool
    shots: int
    version: str
    harness: str

    @classmethod
    def of(cls, row: "EvaluationRow") -> "Evaluation":
        same = ("task", "metric", "difference", "parent_error", "child_error", "difference_error", "is_paired",
                "higher_is_better", "samples", "limit", "is_chat", "shots", "version", "harness")  # fmt: skip
        return cls(parent=row.parent_value, child=row.child_value, **{name: getattr(row, name) for name in same})

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    @property
    def what(self) -> str:
        """The metric, and which way is better."""
        better = {True: ", more is better", False: ", less is better", None: ""}
        chat = " (chat)" if self.is_chat else ""
        return f"{self.task}{chat}: {self.metric}{better[self.higher_is_better]}"

    @property
    def said_parent(self) -> str:
        return _with_error(f"{self.parent:.4f}", self.parent_error)

    @property
    def said_child(self) -> str:
        return _with_error(f"{self.child:.4f}", self.child_error)

    @property
    def said_change(self) -> str:
        unpaired = "" if self.is_paired or self.difference_error is None else " (not paired)"
        return _with_error(f"{self.difference:+.4f}", self.difference_error) + unpaired

    @property
    def said_samples(self) -> str:
        """How many samples, and whether more were left out on request."""
        return f"{self.samples:,}{' (limited)' if self.limit is not None else ''}"


def harnesses(found: Sequence[Evaluation]) -> tuple[str, ...]:
    """The versions of lm_eval that measured them, each once."""
    return tuple(dict.fromkeys(one.harness for one in found))


def _with_error(value: str, error: float | None) -> str:
    return f"{value} ± {'?' if error is None else f'{error:.4f}'}"
