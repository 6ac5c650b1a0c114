"""The command that exports a child. `nas/cli/main.py` registers it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import nas
from nas.cli.arguments import AsJson, Db, TrialNumber
from nas.cli.printed import print_json
from nas.terminal.console import console, talk_beside


@dataclass(frozen=True)
class ExportRequest:
    """The arguments of `nas export`."""

    trial: int
    out: Path
    format: str
    precision: str | None
    dtype: str | None
    db: str | None
    as_json: bool


def export(
    trial: TrialNumber,
    format: Annotated[str, typer.Option("--format", help="The format: hf, decilm, gguf or plain.")] = "hf",
    out: Annotated[Path, typer.Option("--out", help="The new or empty folder to write.")] = ...,  # type: ignore[assignment]
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="The type of a GGUF file's weights: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl, q6_k, q5_k, "
            "q4_k, q3_k or q2_k. Default: the scenario's, if llama.cpp serves; else f16. For decilm and plain: fp8 or "
            "int4, for vLLM. Default: none.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="The type of other formats' weights: float32, bfloat16, float16. Default: the scenario's."
        ),
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Export a built trial's child for an inference engine.

    The command reloads the directory that it wrote, and compares logits with the child's.

    Example: nas export 3 --format gguf --precision q8_0 --out ./child
    """
    _export(ExportRequest(trial, out, format, precision, dtype, db, as_json))


def _export(asked: ExportRequest) -> None:
    search = nas.of_trial(asked.trial, db=asked.db, progress=talk_beside(asked.as_json))
    done = search.export(asked.trial, asked.out, format=asked.format, precision=asked.precision, dtype=asked.dtype)
    if asked.as_json:
        print_json({"folder": str(done.folder), "format": done.format, "files": done.files, "notes": done.notes,
                     "max_logit_difference": done.max_logit_difference})  # fmt: skip
        return
    console.print(
        f"{done.folder}: {done.format}, reloaded; logits differ by at most {done.max_logit_difference:.1e}",
        soft_wrap=True,
    )
    for note in done.notes:
        console.print(note, soft_wrap=True, highlight=False)
