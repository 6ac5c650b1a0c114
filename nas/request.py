"""What a request is: the sections of a job file, the values they may hold, and their defaults.

Knows every key and what fits it. Paths come out absolute, relative ones being relative to the job file's folder, and
globs come out as the files they match. Does not know how a job file is written (`nas/config.py`), what the parent looks
like (`kv50%` stays a share of heads nobody has counted yet), nor what the text holds. Imports no torch.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from blocklib.block import Subblock
from nas.paths import absolute, local_or_hub, matching_files
from nas.units import Limit, did_you_mean, parse_limit, parse_percent, parse_seconds

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Share:
    """A subblock whose size is a share of the parent's own: `kv50%` is Share("kv", 0.5)."""

    kind: str
    share: float

    def __str__(self) -> str:
        return f"{self.kind}{100 * self.share:.15g}%"


Option = Subblock | Share


# --- types of values ------------------------------------------------------------------------------------------------


def _wrong(key: str, message: str) -> PydanticCustomError:
    """A mistake at one key of the section being checked."""
    return PydanticCustomError("wrong", "{message}", {"key": key, "message": message})


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _parent(value: object, info: ValidationInfo) -> str:
    if value == EMBEDDED:
        return EMBEDDED
    parent = local_or_hub(value, _folder(info))
    if os.path.isabs(parent) and not Path(parent, "config.json").is_file():
        raise ValueError(f"{parent} holds no config.json; give the folder of a checkpoint, a hub id, or {EMBEDDED}")
    return parent


def _source(value: object) -> object:
    if isinstance(value, str) and value != "stdlib":
        return (value,)
    if value and isinstance(value, str | list | tuple | dict | HubDataset):
        return value
    raise ValueError(f"{value!r} names no text; write stdlib, a list of files or globs, or {{dataset: NAME_OR_FOLDER}}")


def _source_form(value: object) -> str:
    return "<stdlib>" if isinstance(value, str) else "<files>" if isinstance(value, list | tuple) else "<dataset>"


def _option(value: object, own: str) -> Option:
    """An option of the space, `own` being the kind that takes a size."""
    right = f"write {own}50% (of the parent's), {own}4 (a size of its own), linear or skip"
    text = str(value)
    if percent := re.fullmatch(rf"(?:{own})?([\d.]+%)", text):
        share = parse_percent(percent[1])
        if share > 1:
            raise ValueError(f"{text} is more than the parent has; {right}")
        return Share(own, share)
    if re.fullmatch(rf"linear|skip|{own}[1-9]\d*", text):
        return Subblock.parse(text)
    raise ValueError(f"{value!r} is no option here; {right}")


def _distinct(options: tuple[Option, ...]) -> tuple[Option, ...]:
    for index, option in enumerate(options):
        if option in options[:index]:
            raise ValueError(f"{option} is given twice")
    return options


def _limits(value: object) -> tuple[Limit, ...]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{value!r} limits nothing; name at least one limit, like latency: 60%")
    limits = []
    for metric, text in value.items():
        try:
            limits.append(parse_limit(str(metric), text))
        except ValueError as error:
            raise _wrong(str(metric), str(error)) from error
    return tuple(limits)


_Count = Annotated[int, Field(gt=0, strict=True)]
_Tokens = Annotated[int, Field(ge=0, strict=True)]
_Number = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, lt=1, strict=True, allow_inf_nan=False)]
_Flag = Annotated[bool, Field(strict=True)]
_Name = Annotated[str, Field(pattern=r"^[^\s./\\][^/\\\n]*$")]
_Path = Annotated[Path, BeforeValidator(lambda value, info: absolute(value, _folder(info)))]
_Seconds = Annotated[
    float,
    BeforeValidator(lambda value: parse_seconds("a duration", value)),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(lambda seconds: f"{seconds!r} s"),
]
_Budget = Annotated[
    tuple[Limit, ...],
    PlainValidator(_limits),
    PlainSerializer(lambda limits: {limit.metric: limit.text for limit in limits}),
]
_Attention = Annotated[Option, PlainValidator(lambda value: _option(value, "kv")), PlainSerializer(str)]
_Ffn = Annotated[Option, PlainValidator(lambda value: _option(value, "ffn")), PlainSerializer(str)]
_Files = Annotated[
    tuple[Path, ...], BeforeValidator(lambda value, info: matching_files(value, _folder(info)), list[str])
]
_Schedule = Literal["cosine", "linear", "constant"]
# `false` says "without this stage" as well as `null` does.
_NoneIfFalse = BeforeValidator(lambda value: None if value is False else value)


# --- sections of the file -------------------------------------------------------------------------------------------


class _Section(BaseModel):
    """Keys and values under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"should be keys and values, not {value!r}; known: {', '.join(cls.model_fields)}")
        for key in value:
            if key not in cls.model_fields:
                raise _wrong(str(key), f"unknown key; {did_you_mean(str(key), cls.model_fields)}")
        return value


class HubDataset(_Section):
    """Text read by the `datasets` library: a hub id, or a local folder or file of parquet, jsonl, csv or txt."""

    dataset: Annotated[str, BeforeValidator(lambda value, info: local_or_hub(value, _folder(info)))]
    config: str | None = None
    split: str = "train"
    column: str = "text"


Source = Annotated[
    Annotated[Literal["stdlib"], Tag("<stdlib>")]
    | Annotated[_Files, Tag("<files>")]
    | Annotated[HubDataset, Tag("<dataset>")],
    Discriminator(_source_form),
    BeforeValidator(_source),
]


class Data(_Section):
    """The text, and how many tokens of it each stage reads.

    `evaluation` None: a tenth of the training documents is held out, or of `stdlib` the files it holds out itself.
    `document_separator` None: every file, or row of a dataset, is one document.
    """

    train: Source
    evaluation: Source | None = None
    document_separator: Annotated[str, Field(min_length=1)] | None = "<|endoftext|>"
    sequence_length: Annotated[int, Field(ge=8, strict=True)] = 256
    calibration_tokens: _Count = 16_384
    distillation_tokens: _Count = 262_144
    score_tokens: _Count = 16_384
    evaluation_tokens: _Count = 32_768

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for key in ("calibration_tokens", "distillation_tokens", "score_tokens", "evaluation_tokens"):
            if getattr(self, key) < self.sequence_length:
                given = f"{getattr(self, key)} is less than one sequence"
                raise _wrong(key, f"{given}; give at least data.sequence_length, {self.sequence_length}")
        if self.calibration_tokens > self.distillation_tokens:
            given = f"{self.calibration_tokens} is more than there is to take them from"
            raise _wrong("calibration_tokens", f"{given}; give at most distillation_tokens, {self.distillation_tokens}")
        return self


class Fuse(_Section):
    """Runs of 2 to `longest` FFNs fused into one.

    The parts read through one norm: each part's own folded into its weights (`fold`), or the run's last (`last`).
    """

    longest: Annotated[int, Field(ge=2, strict=True)] = 3
    norm: Literal["fold", "last"] = "fold"


class Space(_Section):
    """What may stand in place of the parent's own, which always may stay.

    `drop_blocks`: whole layers may go, scored as a whole. `pairs`: a layer's attention and FFN are scored together.
    """

    attention: Annotated[tuple[_Attention, ...], AfterValidator(_distinct)] = Field(
        default=("kv50%", "linear", "skip"), validate_default=True
    )
    ffn: Annotated[tuple[_Ffn, ...], AfterValidator(_distinct)] = Field(
        default=("75%", "50%", "25%", "linear", "skip"), validate_default=True
    )
    fuse: Annotated[Fuse | None, _NoneIfFalse] = Fuse()
    drop_blocks: _Flag = True
    pairs: _Flag = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.attention or self.ffn or self.fuse or self.drop_blocks):
            raise ValueError("leaves nothing to choose; name at least one option under attention or ffn")
        return self


class Scenario(_Section):
    """What the child will be served as. `threads` None: what torch takes by itself."""

    device: Annotated[str, Field(pattern=r"^(cpu|mps|(cuda|xpu)(:\d+)?)$")] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: _Count = 16
    prompt_tokens: _Count = 256
    generated_tokens: _Count = 1
    threads: _Count | None = None


class KindTraining(_Section):
    """What one kind of subblock does otherwise than the rest in BLD. None: as the rest does."""

    tokens: _Tokens | None = None
    learning_rate: _Positive | None = None
    schedule: _Schedule | None = None


class KindTrainings(_Section):
    """By the kinds that hold weights."""

    kv: KindTraining = KindTraining()
    ffn: KindTraining = KindTraining()
    linear: KindTraining = KindTraining()
    fuse: KindTraining = KindTraining()


class Distill(_Section):
    """Blockwise local distillation. `tokens` None: all distillation tokens; 0: first weights only, nothing is trained.

    `warmup` is a share of the steps.
    """

    least_squares: _Flag = True
    tokens: _Tokens | None = None
    batch: _Count = 8
    learning_rate: _Positive = 3e-3
    warmup: _Fraction = 0.05
    schedule: _Schedule = "cosine"
    weight_decay: _Number = 0.0
    kinds: KindTrainings = KindTrainings()

    def for_kind(self, kind: str) -> "Distill":
        """These settings with what `kinds` says otherwise of one kind put in; `fuse_last` goes by `fuse`."""
        special = getattr(self.kinds, kind.removesuffix("_last"), KindTraining())
        return self.model_copy(update=special.model_dump(exclude_none=True))


class Score(_Section):
    """`kl`: of the parent's next-token distribution to the child's. `lm_loss`: the rise of the loss on the text."""

    metric: Literal["kl", "lm_loss"] = "kl"


class Measure(_Section):
    """How long a stack of one geometry is timed: until its time relative to the parent's is known to `tolerance`, a
    standard error, and for at most `time_limit` seconds. The assembled child is given three times that."""

    tolerance: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.01
    time_limit: _Seconds = 20.0


class Solver(_Section):
    """`gap`: how far from the optimum an answer may be, as a share of its score. `time_limit` is in seconds."""

    gap: _Fraction = 1e-4
    time_limit: _Seconds = 60.0


class Heal(_Section):
    """Global distillation of the assembled child. `hidden_weight`: of the hidden states' loss beside the logits'."""

    tokens: _Count | None = None
    batch: _Count = 8
    learning_rate: _Positive = 1e-3
    warmup: _Fraction = 0.05
    hidden_weight: _Number = 1.0


class Export(_Section):
    """`out` None: a folder of the trial's own under `home`."""

    format: Literal["hf", "decilm"] = "hf"
    out: _Path | None = None


class Ray(_Section):
    """`address` None: a local Ray, started and stopped by us. `layers_per_task` None: as keeps every CPU busy."""

    address: str | None = None
    layers_per_task: _Count | None = None
    cpus_per_task: _Positive = 1
    gpus_per_task: _Number = 0


def checkpoint_of(parent: str) -> str:
    """What `from_pretrained` takes for a request's parent: a folder or a hub id."""
    return str(resources.files("nas").joinpath("embedded/parent")) if parent == EMBEDDED else parent


class Request(_Section):
    """One search: parent, data, space, scenario, budget, and how to go about it.

    `parent` is `embedded`, the absolute path of a local checkpoint, or a hub id. `heal` None: the child is not healed.
    """

    name: _Name
    parent: Annotated[str, BeforeValidator(_parent)]
    data: Data
    space: Space = Space()
    scenario: Scenario = Scenario()
    budget: _Budget
    distill: Distill = Distill()
    score: Score = Score()
    measure: Measure = Measure()
    solver: Solver = Solver()
    heal: Annotated[Heal | None, _NoneIfFalse] = Heal()
    export: Export = Export()
    ray: Ray = Ray()
    home: Annotated[_Path, BeforeValidator(lambda value: _default_home() if value is None else value)] = Field(
        default=None, validate_default=True
    )

    @property
    def checkpoint(self) -> str:
        """What `from_pretrained` takes: a folder or a hub id."""
        return checkpoint_of(self.parent)

    def canonical(self) -> dict[str, Any]:
        """Every key with its value, defaults included, as plain JSON; as YAML it parses to an equal request."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _agreement(self) -> Self:
        for key, tokens in _training_tokens(self):
            # Healing may pass over the text several times.
            if tokens is not None and tokens > self.data.distillation_tokens and key != "heal.tokens":
                most = f"give at most data.distillation_tokens, {self.data.distillation_tokens}, or raise that"
                raise _wrong(key, f"{tokens} is more than there is to train on; {most}")
            if tokens is not None and 0 < tokens < self.data.sequence_length:
                least = f"give at least data.sequence_length, {self.data.sequence_length}"
                raise _wrong(key, f"{tokens} is less than one sequence; {least}")
        if any(limit.metric == "decode" for limit in self.budget) and self.scenario.generated_tokens == 1:
            raise _wrong("budget.decode", "nothing is decoded after the first token; give scenario.generated_tokens: 2")
        return self


def _default_home() -> str:
    return os.environ.get("NAS_HOME") or "~/.puzzle-nas"


def _training_tokens(request: Request) -> Iterator[tuple[str, int | None]]:
    yield "distill.tokens", request.distill.tokens
    for kind in KindTrainings.model_fields:
        yield f"distill.kinds.{kind}.tokens", getattr(request.distill.kinds, kind).tokens
    yield "heal.tokens", request.heal.tokens if request.heal else None
