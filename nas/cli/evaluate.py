"""The command that asks lm_eval about a child and its parent. `nas/cli/main.py` registers it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

import nas
from nas.cli.arguments import AsJson, Db, TrialNumber
from nas.cli.printed import print_json, print_table
from nas.terminal.console import talk_beside
from nas.view.evaluation import harnesses

if TYPE_CHECKING:
    from nas.view.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluateRequest:
    """The arguments of `nas evaluate`."""

    trial: int
    tasks: tuple[str, ...]
    limit: int | None
    batch: int
    chat: bool
    db: str | None
    as_json: bool


def evaluate(
    trial: TrialNumber,
    tasks: Annotated[
        list[str],
        typer.Option(help="Tasks of lm_eval with commas between, a task's YAML file, or a folder. May be repeated."),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many samples of each task.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples that a model reads at once.")] = 8,
    chat: Annotated[
        bool, typer.Option("--apply-chat-template", help="Wrap prompts in the tokenizer's chat template.")
    ] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a built child and its parent on tasks of lm_eval, side by side.

    The change has a standard error, from the differences sample by sample where that is possible. Each task is kept
    when both have done it, and is not measured again. A task file with its data beside it needs no network.
    Needs: pip install 'puzzle-nas[eval]'.

    Example: nas evaluate 3 --tasks arc_easy,./my_task.yaml --limit 500
    """
    _evaluate(EvaluateRequest(trial, tuple(tasks), limit, batch, chat, db, as_json))


def _evaluate(asked: EvaluateRequest) -> None:
    search = nas.of_trial(asked.trial, db=asked.db, progress=talk_beside(asked.as_json))
    found = search.evaluate(asked.trial, asked.tasks, limit=asked.limit, batch=asked.batch, chat=asked.chat)
    if asked.as_json:
        print_json([one.to_dict() for one in found])
        return
    print_evaluations(found)


def print_evaluations(found: "Sequence[Evaluation]") -> None:
    """Nothing, where there are none. The version of lm_eval stands in each line, where lines differ in it."""
    if found:
        rows = [[one.what, one.said_parent, one.said_child, one.said_change, one.said_samples] for one in found]
        heads = ["task", "parent", "child", "change", "samples"]
        if len(harnesses(found)) > 1:
            heads.append("lm_eval")
            rows = [[*row, one.harness] for row, one in zip(rows, found, strict=True)]
        print_table(heads, rows)
