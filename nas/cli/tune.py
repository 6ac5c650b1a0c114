"""The command that tunes the learning rate of distillation. `nas/cli/main.py` registers it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import nas
from nas.cli.arguments import AsJson, Db
from nas.cli.printed import print_json, print_table
from nas.errors import UsageError
from nas.terminal.console import console, talk_beside

if TYPE_CHECKING:
    from nas.stages.tune import Tuning


def _layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.strip().isascii() and number.strip().isdigit() for number in numbers):
        raise UsageError(f"--layers: {text!r} is no list of layers; write their numbers from 0, as 0,15,29")
    return [int(number) for number in numbers]


def tune(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Learning rates to try, those that were tried before included.")
    ] = 10,
    layers: Annotated[
        str | None, typer.Option(help="Layers to train, as 0,15,29. Default: the first, the middle and the last.")
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Find the learning rate of distillation for a job's parent.

    It trains the job's options in a few layers at several rates, and keeps each trial: the same command goes on with
    those that it has. The next search of the parent takes the best, unless its job says distill.learning_rate.

    Example: nas tune job.yaml --trials 8
    """
    found = nas.tune(job, trials=trials, layers=_layers(layers), db=db, progress=talk_beside(as_json))
    if as_json:
        print_json(_plain(found))
    else:
        _print(found)


def _print(found: "Tuning") -> None:
    layers = ", ".join(map(str, found.layers))
    console.print(
        f"{len(found.choices)} subblocks of the layers {layers}, {found.under}:", soft_wrap=True, highlight=False
    )
    trials = sorted(found.trials, key=lambda one: one.learning_rate)
    print_table(
        ("learning rate", "loss after training to that before"),
        [(f"{one.learning_rate:g}", one.said.removesuffix(" of the loss before training")) for one in trials],
    )
    best = found.best
    console.print(f"best: learning rate {best.learning_rate:g}, {best.said}", soft_wrap=True, highlight=False)
    if best.objective is not None and best.objective >= 1:
        console.print("no rate made the subblocks better; give more distill.tokens", soft_wrap=True, highlight=False)
    console.print(_use(found), soft_wrap=True, highlight=False)


def _use(found: "Tuning") -> str:
    if found.asked is None:
        return "the next search of this parent takes it"
    return f"the job says distill.learning_rate: {found.asked:g}, which wins; leave it out to take the best"


def _plain(found: "Tuning") -> dict[str, Any]:
    return {
        "parent": found.parent,
        "learning_rate": found.best.learning_rate,
        "objective": found.best.objective,
        **vars(found.under),
        "layers": found.layers,
        "choices": [str(choice) for choice in found.choices],
        "trained": found.trained,
        "trials": [vars(one) for one in found.trials],
    }
