"""The tables, one class each. An instance is one row.

This file knows the columns, their units and which rows belong together. It does not know who computes a row, how a
content key is made, or where the database is.

    search ──< option      what a search could choose from; points at what was measured of each option
      ├─────< trial        the architectures it proposed, predicted and measured
      ├─────< whole_time   whole architectures timed beside the parent, to check or correct sums of costs
      ├─────< stage        what it did and how long it took
      └─────< failure      what went wrong and where

    score, cost, distillation: measured things, shared by all searches, each under a content key that says what was
    measured under what. The first row of a key stays; only a cost is replaced, when it is measured again
    (`replace_costs.py`). `db/evaluations.py` adds those of a child on tasks, `db/tuning.py` tried learning rates.

Columns ending in `_s` are seconds, `_j` joules, `_bytes` bytes; losses and KLs are nats per token; moments are UTC.
"""

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

SearchStatus = Literal["running", "finished", "failed", "interrupted"]


def now() -> datetime:
    return datetime.now(UTC)


class Utc(TypeDecorator[datetime]):
    """A moment, aware and in UTC on both sides. SQLite keeps no time zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(MappedAsDataclass, DeclarativeBase):
    # Every constraint has a name, or no later migration could drop it.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy declares it so)
        str: Text(),
        SearchStatus: Text(),
        float: Double(),
        # 64 bits for bytes and tokens. SQLite's INTEGER has them, and is the only type it counts rows with.
        int: BigInteger().with_variant(Integer(), "sqlite"),
        datetime: Utc(),
        dict[str, Any]: JSON(),
        list[list[float]]: JSON(),
        list[str]: JSON(),
    }


class SearchRow(Base, kw_only=True):
    """One job: a parent, a request, a scenario."""

    __tablename__ = "search"
    __table_args__ = (CheckConstraint(f"status IN {get_args(SearchStatus)}", name="status"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
    updated_at: Mapped[datetime] = mapped_column(default_factory=now)
    status: Mapped[SearchStatus] = mapped_column(default="running")
    parent: Mapped[str]
    """Path of the parent's checkpoint."""
    parent_digest: Mapped[str]
    parent_architecture: Mapped[str]
    request: Mapped[dict[str, Any]]
    scenario: Mapped[dict[str, Any]]
    hardware: Mapped[str]
    parent_costs: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    """The parent's own cost under the scenario, predicted and measured."""
    score_text: Mapped[str | None] = mapped_column(default=None)
    """The caller's content key of the text that scores are of; None where that was not noted yet."""
    dependency: Mapped[list[list[float]] | None] = mapped_column(default=None)
    """How much each block of the parent depends on each before it, [layers][layers]; None where nobody asked."""
    rate_source: Mapped[str | None] = mapped_column(default=None)
    """Who says the learning rate of distillation: "job", "tuned" or "default"; None: nobody, or it was not noted."""
    removal: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """The parent's losses without whole layers, for the baselines that drop them; None if none has run."""


class ScoreRow(Base, kw_only=True):
    """How far the parent's output moves when one choice is put in its place."""

    __tablename__ = "score"

    key: Mapped[str] = mapped_column(primary_key=True)
    choice: Mapped[str]
    kl: Mapped[float]
    lm_loss: Mapped[float]
    top1_agreement: Mapped[float]
    hidden_cosine: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class CostRow(Base, kw_only=True):
    """The cost of one subblock or block under one scenario; the row `fixed` is embedding, final norm and head."""

    __tablename__ = "cost"

    key: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    prefill_s: Mapped[float]
    decode_s: Mapped[float]
    spread: Mapped[float]
    """Standard error that it puts into a model full of it, as a share of the parent's time."""
    parameters: Mapped[int]
    active_parameters: Mapped[int]
    weight_bytes: Mapped[int]
    prefill_bytes: Mapped[int]
    decode_bytes: Mapped[int]
    cache_bytes: Mapped[int]
    prefill_error_s: Mapped[float | None] = mapped_column(default=None)
    """Standard error of `prefill_s`; empty where it was not noted yet."""
    decode_error_s: Mapped[float | None] = mapped_column(default=None)
    contention: Mapped[float | None] = mapped_column(default=None)
    """Share of the cores needed that other programs kept busy meanwhile; empty where it was not noted yet."""
    prefill_j: Mapped[float | None] = mapped_column(default=None)
    """Joules, and their standard errors; empty where no meter was read."""
    decode_j: Mapped[float | None] = mapped_column(default=None)
    prefill_error_j: Mapped[float | None] = mapped_column(default=None)
    decode_error_j: Mapped[float | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class DistillationRow(Base, kw_only=True):
    """How one choice was distilled. Losses are normalised MSE: `loss_*` on held-out text, in the order they were
    reached, those of the curve on the text it trained on."""

    __tablename__ = "distillation"

    key: Mapped[str] = mapped_column(primary_key=True)
    choice: Mapped[str]
    tokens: Mapped[int]
    seconds: Mapped[float]
    loss_first_weights: Mapped[float]
    loss_least_squares: Mapped[float | None] = mapped_column(default=None)
    loss_trained: Mapped[float | None] = mapped_column(default=None)
    curve: Mapped[list[list[float]]] = mapped_column(default_factory=list)
    """Pairs of [tokens, loss]."""
    usage: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """How evenly a routed FFN's parts are used, as `blocklib.distil.Usage`; None where it is not routed."""
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class OptionRow(Base, kw_only=True):
    """A choice one search may make.

    `cost_keys` and `distillation_key` may name what was never measured (weights kept as they are, for one), so only
    `score_key` is a foreign key.
    """

    __tablename__ = "option"

    search_id: Mapped[str] = mapped_column(ForeignKey("search.id"), primary_key=True)
    choice: Mapped[str] = mapped_column(primary_key=True)
    first_slot: Mapped[int]
    span: Mapped[int]
    name: Mapped[str]
    score_key: Mapped[str | None] = mapped_column(ForeignKey("score.key"), default=None)
    cost_keys: Mapped[list[str]] = mapped_column(default_factory=list)
    """The keys of the costs that add up to the option's: one for a subblock, several for a block, none for `skip`. Of a
    type of keys and values: of the costs that count in place of those named alike without it."""
    distillation_key: Mapped[str | None] = mapped_column(default=None)


class TrialRow(Base, kw_only=True):
    """One architecture a search proposed: predicted always, measured where it was built."""

    __tablename__ = "trial"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    key: Mapped[str] = mapped_column(unique=True)
    """The caller's content key of the child and of what it was proposed for."""
    child_key: Mapped[str] = mapped_column(index=True)
    """The caller's content key of the child alone: the search, the architecture and how it is healed."""
    search_id: Mapped[str] = mapped_column(ForeignKey("search.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
    solver: Mapped[str]
    architecture: Mapped[str]
    budget: Mapped[dict[str, Any]]
    score: Mapped[float]
    """The predicted sum of the options' scores."""
    bound: Mapped[float | None] = mapped_column(default=None)
    """No architecture within the budget, or `solved_for` among the details, can score less. Empty where the solver
    proves nothing."""
    gap: Mapped[float | None] = mapped_column(default=None)
    status: Mapped[str]
    """The score is "optimal", or "feasible" with a gap; "evaluated" if the solver chose by more than the score."""

    predicted_latency_s: Mapped[float]
    predicted_ttft_s: Mapped[float]
    predicted_decode_s: Mapped[float]
    predicted_throughput: Mapped[float]
    predicted_memory_bytes: Mapped[int]
    predicted_parameters: Mapped[int]
    predicted_latency_error_s: Mapped[float | None] = mapped_column(default=None)
    """The sum of its parts' standard errors, which the prediction's is no larger than; empty where one is unknown."""
    predicted_ttft_error_s: Mapped[float | None] = mapped_column(default=None)
    predicted_decode_error_s: Mapped[float | None] = mapped_column(default=None)
    predicted_energy_j: Mapped[float | None] = mapped_column(default=None)
    predicted_energy_error_j: Mapped[float | None] = mapped_column(default=None)
    predicted_file_bytes: Mapped[int | None] = mapped_column(default=None)
    """Empty, as `predicted_bits_per_weight`, where it was not computed yet."""
    predicted_bits_per_weight: Mapped[float | None] = mapped_column(default=None)
    predicted_contention: Mapped[float | None] = mapped_column(default=None)
    """The worst under which a part was timed."""

    latency_s: Mapped[float | None] = mapped_column(default=None)
    latency_ratio: Mapped[float | None] = mapped_column(default=None)
    """Child over parent, measured interleaved."""
    latency_spread: Mapped[float | None] = mapped_column(default=None)
    """Standard error of the ratio, relative to it; `ttft_spread` and `decode_spread` are theirs."""
    ttft_spread: Mapped[float | None] = mapped_column(default=None)
    decode_spread: Mapped[float | None] = mapped_column(default=None)
    contention: Mapped[float | None] = mapped_column(default=None)
    """Share of the cores needed that other programs kept busy while the child was timed."""
    ttft_s: Mapped[float | None] = mapped_column(default=None)
    decode_s: Mapped[float | None] = mapped_column(default=None)
    throughput: Mapped[float | None] = mapped_column(default=None)
    """Tokens per second."""
    energy_j: Mapped[float | None] = mapped_column(default=None)
    energy_ratio: Mapped[float | None] = mapped_column(default=None)
    energy_spread: Mapped[float | None] = mapped_column(default=None)
    memory_bytes: Mapped[int | None] = mapped_column(default=None)
    file_bytes: Mapped[int | None] = mapped_column(default=None)
    bits_per_weight: Mapped[float | None] = mapped_column(default=None)
    """Per weight of the parent."""
    parameters: Mapped[int | None] = mapped_column(default=None)

    kl_whole: Mapped[float | None] = mapped_column(default=None)
    """KL of the assembled, untrained child on the score text: what `score` predicts."""
    kl_before_heal: Mapped[float | None] = mapped_column(default=None)
    lm_loss_before_heal: Mapped[float | None] = mapped_column(default=None)
    kl: Mapped[float | None] = mapped_column(default=None)
    lm_loss: Mapped[float | None] = mapped_column(default=None)
    perplexity: Mapped[float | None] = mapped_column(default=None)
    top1_agreement: Mapped[float | None] = mapped_column(default=None)
    hidden_cosine: Mapped[float | None] = mapped_column(default=None)
    heal_tokens: Mapped[int | None] = mapped_column(default=None)
    round_tokens: Mapped[int | None] = mapped_column(default=None)
    """Those on which each layer of the child was trained through its rounding."""
    heal_curve: Mapped[list[list[float]] | None] = mapped_column(default=None)
    """Points of tokens and loss while it was healed, on the text it trained on: the KL with the loss's other terms.
    Empty where it was not healed."""

    child_path: Mapped[str | None] = mapped_column(default=None)
    details: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)

    # Each thing that `details` holds, under its own name: no other file reads its keys.

    @property
    def metric(self) -> str:
        """The kind of its score, kl or lm_loss."""
        return str(self.details["metric"])

    @property
    def choices(self) -> tuple[str, ...]:
        """The options it is made of, spelled: the architecture alone does not say what was scored as a pair."""
        return tuple(self.details.get("choices", ()))

    @property
    def solved_for(self) -> dict[str, str] | None:
        """The limits that its score, bound and gap are proven within, where they are not those of its budget."""
        found: dict[str, str] | None = self.details.get("solved_for")
        return found

    @property
    def explained(self) -> dict[str, Any] | None:
        """Its shadow prices and close calls, as `nas/solve/explain.py` reads them; None if they were not computed."""
        found: dict[str, Any] | None = self.details.get("explained")
        return found

    @property
    def plain(self) -> dict[str, Any] | None:
        """The price of layers of one size, as `nas/solve/plain_price.py` reads it; None for any other answer."""
        found: dict[str, Any] | None = self.details.get("plain")
        return found

    @property
    def export_format(self) -> str | None:
        """The format of what stands at `child_path`."""
        found: str | None = self.details.get("export_format")
        return found

    @property
    def of_parent(self) -> dict[str, float | None]:
        """The measurements of the parent beside the child, by the child's columns."""
        return dict(self.details.get("parent", {}))

    @property
    def parent_lm_loss(self) -> float | None:
        """The parent's loss on the evaluation text; None until a child was built."""
        return self.of_parent.get("lm_loss")

    @property
    def parent_vocabulary(self) -> int | None:
        """The tokens that the parent knows; None where that was not noted yet."""
        found = self.of_parent.get("vocabulary")
        return None if found is None else int(found)


OF_THE_CHILD = (
    "latency_s", "latency_ratio", "latency_spread", "ttft_s", "ttft_spread", "decode_s", "decode_spread", "throughput",
    "energy_j", "energy_ratio", "energy_spread", "contention", "memory_bytes", "file_bytes",
    "bits_per_weight", "parameters",
    "kl_whole", "kl_before_heal", "lm_loss_before_heal", "kl", "lm_loss", "perplexity", "top1_agreement",
    "hidden_cosine", "heal_tokens", "round_tokens", "heal_curve",
)  # fmt: skip
"""Columns of a trial that are measured of its child, whatever the trial was proposed for."""

OF_THE_HEALED = (
    "kl_before_heal", "lm_loss_before_heal", "kl", "lm_loss", "perplexity", "top1_agreement", "hidden_cosine",
    "heal_tokens", "round_tokens", "heal_curve",
)  # fmt: skip
"""Those of them that depend on healing, and on training through rounding. The others depend on the architecture alone:
neither changes a shape."""


class WholeTimeRow(Base, kw_only=True):
    """A whole architecture of a search timed beside the parent, to check the sums of costs or to correct the costs.

    `take` counts the timings of one architecture from 0. `corrects`: costs of the search are corrected by it, so it
    checks nothing. The decode columns are None where nothing is decoded.
    """

    __tablename__ = "whole_time"
    __table_args__ = (UniqueConstraint("search_id", "architecture", "take"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    search_id: Mapped[str] = mapped_column(ForeignKey("search.id"), index=True)
    architecture: Mapped[str]
    take: Mapped[int]
    prefill_s: Mapped[float]
    parent_prefill_s: Mapped[float]
    prefill_spread: Mapped[float]
    contention: Mapped[float]
    corrects: Mapped[bool] = mapped_column(default=False)
    decode_s: Mapped[float | None] = mapped_column(default=None)
    parent_decode_s: Mapped[float | None] = mapped_column(default=None)
    decode_spread: Mapped[float | None] = mapped_column(default=None)


class StageRow(Base, kw_only=True):
    """One stage of one run of a search."""

    __tablename__ = "stage"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    search_id: Mapped[str] = mapped_column(ForeignKey("search.id"), index=True)
    name: Mapped[str]
    started_at: Mapped[datetime]
    seconds: Mapped[float]
    work_done: Mapped[int]
    """Units really computed; 0 where everything was already known."""


class FailureRow(Base, kw_only=True):
    """Something that went wrong, with its place: a choice, a file, a worker."""

    __tablename__ = "failure"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    search_id: Mapped[str | None] = mapped_column(ForeignKey("search.id"), index=True, default=None)
    at: Mapped[datetime] = mapped_column(default_factory=now)
    stage: Mapped[str]
    place: Mapped[str]
    reason: Mapped[str]
