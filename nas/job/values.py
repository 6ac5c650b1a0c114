"""How single values of a job file are written, and what they become: sizes, shares, limits, durations, paths.

Paths come out absolute, relative ones being relative to the job file's folder, and globs come out as the files they
match. The parent's shape is not known here: `kv50%` stays a share of heads nobody has counted yet.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from blocklib.block import Subblock
from blocklib.errors import SpellingError
from cost_models.errors import QuantityError
from nas.errors import BudgetError, JobError
from nas.job.paths import absolute, matching_files
from nas.job.units import Limit, parse_limit, parse_percent, parse_quantity, parse_seconds


@dataclass(frozen=True)
class Share:
    """A subblock whose size is a share of the parent's own: `kv50%` is Share("kv", 0.5)."""

    kind: str
    share: float

    def __str__(self) -> str:
        return f"{self.kind}{100 * self.share:.15g}%"


SpaceOption = Subblock | Share


def wrong(key: str, message: str) -> PydanticCustomError:
    """A mistake at one key of the section being checked."""
    return PydanticCustomError("wrong", "{message}", {"key": key, "message": message})


def folder_of(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _option(value: object, own: str) -> SpaceOption:
    """An option of the space, `own` being the parent's kind. Which kinds there are is not known here."""
    right = (
        f"write {own}50% (of the parent's), {own}4 (a size of its own), linear, skip or a kind of the README's table"
    )
    text = str(value)
    if percent := re.fullmatch(r"([a-z_]*)([\d.]+%)", text):
        share = parse_percent(percent[2])
        if own == "kv" and percent[1] not in ("", own):
            raise JobError(f"{value!r} is no option here; {right}")
        if share > 1:
            raise JobError(f"{text} is more than the parent has; {right}")
        return Share(percent[1] or own, share)
    try:
        option = Subblock.parse(text)
    except SpellingError:
        option = None
    if option is None or option.parts:
        raise JobError(f"{value!r} is no option here; {right}")
    return option


def distinct(options: tuple[SpaceOption, ...]) -> tuple[SpaceOption, ...]:
    for index, option in enumerate(options):
        if option in options[:index]:
            raise JobError(f"{option} is given twice")
    return options


def _limits(value: object) -> tuple[Limit, ...]:
    if not isinstance(value, Mapping) or not value:
        raise JobError(f"{value!r} limits nothing; name at least one limit, like latency: 60%")
    limits = []
    for metric, text in value.items():
        try:
            limits.append(parse_limit(str(metric), text))
        except (BudgetError, QuantityError) as error:
            raise wrong(str(metric), str(error)) from error
    return tuple(limits)


def _without_rate(value: object) -> object:
    """A speed is written like 60 GB/s."""
    return value.removesuffix("/s") if isinstance(value, str) else value


def _file_name(value: str) -> str:
    """A name that files can have."""
    if not re.fullmatch(r"[^\s./\\][^/\\\n]*", value):
        raise ValueError(
            f"{value!r} is not a name: a name has no slash and no line break, and does not begin with a dot or a space"
        )
    return value


def _precisions(value: object) -> tuple[str, ...] | Literal["all"]:
    if value == "all":
        return "all"
    return _names(value, "precisions; write all, or a list like [q8_0, q5_0, q4_0]")


def _caches(value: object) -> tuple[str, ...]:
    return _names(value, "types of keys and values; write one like [f16, q8_0]")


def _names(value: object, said: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise JobError(f"{value!r} is no list of {said}")
    for index, name in enumerate(value):
        if name in value[:index]:
            raise JobError(f"{name} is given twice")
    return tuple(value)


_A_DATASET = "; a dataset, a folder or of the hub, is written {dataset: FOLDER_OR_NAME, split: train, column: text}"
Count = Annotated[int, Field(gt=0, strict=True)]
TokenCount = Annotated[int, Field(ge=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, AfterValidator(_file_name)]
AbsolutePath = Annotated[Path, BeforeValidator(lambda value, info: absolute(value, folder_of(info)))]
Seconds = Annotated[
    float,
    BeforeValidator(lambda value: parse_seconds("a duration", value)),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(lambda seconds: f"{seconds!r} s"),
]
Bytes = Annotated[
    float,
    BeforeValidator(lambda value: parse_quantity("memory", _without_rate(value))),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(lambda count: f"{count!r} B"),
]
Budget = Annotated[
    tuple[Limit, ...],
    PlainValidator(_limits),
    PlainSerializer(lambda limits: {limit.metric: limit.text for limit in limits}),
]
AttentionOption = Annotated[SpaceOption, PlainValidator(lambda value: _option(value, "kv")), PlainSerializer(str)]
FfnOption = Annotated[SpaceOption, PlainValidator(lambda value: _option(value, "ffn")), PlainSerializer(str)]
Files = Annotated[
    tuple[Path, ...], BeforeValidator(lambda value, info: matching_files(value, folder_of(info), _A_DATASET), list[str])
]
Precisions = Annotated[
    tuple[str, ...] | Literal["all"], PlainValidator(_precisions), PlainSerializer(lambda value: value)
]
Caches = Annotated[tuple[str, ...], PlainValidator(_caches), PlainSerializer(list)]
Schedule = Literal["cosine", "linear", "constant"]
# `false` says "without this stage" as well as `null` does.
NoneIfFalse = BeforeValidator(lambda value: None if value is False else value)
