"""The section of a job file that names its text. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from nas.errors import JobError
from nas.job.paths import local_or_hub
from nas.job.sections import Section
from nas.job.values import Count, Files, Flag, folder_of, wrong


def _source(value: object) -> object:
    if isinstance(value, str) and value != "stdlib":
        return (value,)
    if value and isinstance(value, str | list | tuple | dict | HubDataset):
        return value
    raise JobError(f"{value!r} names no text; write stdlib, a list of files or globs, or {{dataset: NAME_OR_FOLDER}}")


def _source_form(value: object) -> str:
    return "<stdlib>" if isinstance(value, str) else "<files>" if isinstance(value, list | tuple) else "<dataset>"


class HubDataset(Section):
    """Text of one column: a hub id; a folder or file of Parquet, Arrow, JSON, CSV or text; a `save_to_disk` folder."""

    dataset: Annotated[str, BeforeValidator(lambda value, info: local_or_hub(value, folder_of(info)))]
    config: str | None = None
    split: str = "train"
    column: str = "text"


Source = Annotated[
    Annotated[Literal["stdlib"], Tag("<stdlib>")]
    | Annotated[Files, Tag("<files>")]
    | Annotated[HubDataset, Tag("<dataset>")],
    Discriminator(_source_form),
    BeforeValidator(_source),
]


class Data(Section):
    """The text, and how many tokens of it each stage reads.

    Files are plain text, or data files whose column is called text; each is told by its content. `evaluation` None: as
    much training text as it asks for is held out, of every source its share, or of `stdlib` the files it holds out
    itself. `document_separator` None: every file, or row of a dataset, is one document. `append_eos`: the tokenizer's
    EOS token ends each document.
    """

    train: Source
    evaluation: Source | None = None
    document_separator: Annotated[str, Field(min_length=1)] | None = "<|endoftext|>"
    append_eos: Flag = False
    sequence_length: Annotated[int, Field(ge=8, strict=True)] = 256
    calibration_tokens: Count = 16_384
    distillation_tokens: Count = 262_144
    score_tokens: Count = 16_384
    evaluation_tokens: Count = 32_768

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for key in ("calibration_tokens", "distillation_tokens", "score_tokens", "evaluation_tokens"):
            if getattr(self, key) < self.sequence_length:
                given = f"{getattr(self, key)} is less than one sequence"
                raise wrong(key, f"{given}; give at least data.sequence_length, {self.sequence_length}")
        if self.calibration_tokens > self.distillation_tokens:
            given = f"{self.calibration_tokens} is more than the text that they are taken from"
            raise wrong("calibration_tokens", f"{given}; give at most distillation_tokens, {self.distillation_tokens}")
        return self
