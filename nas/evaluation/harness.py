"""lm_eval, behind one function: a model on one task. Nothing else of the package imports it.

lm_eval is an extra. It reads tasks and data sets, writes prompts and counts; the models are ours, in memory.
"""

import contextlib
import importlib.util
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas.errors import EvaluationError
from nas.evaluation.paired import ModelScore
from nas.evaluation.tasks import AskedTask

_INSTALL = "evaluation needs one more library: pip install 'puzzle-nas[eval]'"
_SEED = 1234
# lm_eval resamples where a metric has no formula of its standard error.
_RESAMPLED = 1000


@dataclass(frozen=True)
class HowEvaluated:
    """`limit`: the most samples of each task; None: all. `chat`: prompts are wrapped in the tokenizer's template."""

    limit: int | None = None
    batch: int = 8
    chat: bool = False


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm_eval with its data; `asked` is what it comes from, for a group as well."""

    name: str
    asked: AskedTask
    task: Any


@dataclass(frozen=True)
class Metrics:
    """One model on one task: each metric by its name, with its filter where that is not "none"."""

    values: dict[str, ModelScore]
    higher_is_better: dict[str, bool | None]
    version: str
    shots: int
    samples: int


def harness_version() -> str:
    """The version of lm_eval. Raises EvaluationError, with the line to type, where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError(_INSTALL)
    return version("lm_eval")


class TaskLoader:
    """lm_eval's index of tasks, read once; its own tasks are indexed only if one of them is asked for."""

    def __init__(self, asked: tuple[AskedTask, ...]):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,unused-ignore]

        has_own = any(task.file is None for task in asked)
        self._manager: Any = TaskManager(include_defaults=has_own)
        if unknown := [task.name for task in asked if task.file is None and task.name not in self._manager.all_tasks]:
            nearest = " or ".join(get_close_matches(unknown[0], self._manager.all_tasks))
            instead = f"did you mean {nearest}? " if nearest else ""
            raise EvaluationError(
                f"lm_eval knows no task {unknown[0]!r}; {instead}`lm_eval ls tasks` lists them; a file of your own is "
                "named by its path, like ./task.yaml"
            )

    def load(self, asked: AskedTask) -> tuple[LoadedTask, ...]:
        """The task with its data; the tasks of a group. Raises EvaluationError where the file is wrong, or the data are
        not here and cannot be fetched."""
        folder = asked.file.parent if asked.file else Path.cwd()
        spec = str(asked.file) if asked.file else asked.name
        try:
            with contextlib.chdir(folder):
                tasks = self._manager.load([spec])["tasks"]
        except Exception as error:  # A task may run code and read any file.
            raise _cannot_load(asked, error) from error
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_SEED)
        return tuple(LoadedTask(name, asked, task) for name, task in tasks.items())


def _cannot_load(asked: AskedTask, error: Exception) -> EvaluationError:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if asked.file is not None:
        return EvaluationError(f"{asked.file}: lm_eval cannot load this task: {type(error).__name__}: {said}")
    chain = [error, error.__cause__, error.__context__]
    offline = any(isinstance(each, ConnectionError | TimeoutError) for each in chain) or "ffline" in said
    remedy = "offline, give a task file with its data beside it" if offline else "check the task's own requirements"
    return EvaluationError(f"task {asked.name}: its data cannot be loaded: {said}; {remedy}")


class EvaluatedModel:
    """A model that lm_eval asks, on the device it is on."""

    def __init__(self, what: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: HowEvaluated):
        self.what, self._how = what, how
        self._lm = _quiet_lm()(
            pretrained=model, tokenizer=tokenizer, batch_size=how.batch, device=str(model.device), backend="causal"
        )

    def on(self, loaded: LoadedTask) -> Metrics:
        """Raises EvaluationError where a metric is not a finite number, or lm_eval fails."""
        from lm_eval.evaluator import evaluate  # type: ignore[import-not-found,unused-ignore]

        name = loaded.name
        _seed()
        task_dict = {"tasks": {name: loaded.task}, "groups": {}, "group_map": {}}
        try:
            found = evaluate(
                lm=self._lm, task_dict=task_dict, limit=self._how.limit, bootstrap_iters=_RESAMPLED,
                apply_chat_template=self._how.chat, fewshot_as_multiturn=self._how.chat, verbosity="ERROR",
            )  # fmt: skip
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:300]
            raise EvaluationError(
                f"task {name}: lm_eval fails on the {self.what}: {type(error).__name__}: {said}"
            ) from error
        values = dict(self._metrics(name, found["results"][name], found["samples"][name]))
        if not values:
            raise EvaluationError(f"task {name}: gives no number; give it a metric_list")
        better = {key: found["higher_is_better"][name].get(key.split(",")[0]) for key in values}
        count = found["n-samples"][name]["effective"]
        return Metrics(values, better, str(found["versions"][name]), int(found["n-shot"][name]), int(count))

    def _metrics(self, task: str, results: dict[str, Any], samples: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
        in_order = sorted(samples, key=lambda sample: sample["doc_id"])
        for key, value in results.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or isinstance(value, str):
                continue
            if not math.isfinite(value):
                raise EvaluationError(f"task {task}: {metric} of the {self.what} is {float(value)}, not a number")
            error = results.get(f"{metric}_stderr,{filter_name}")
            spread = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            noted = [sample.get(metric) for sample in in_order if sample["filter"] == filter_name]
            name = metric if filter_name == "none" else key
            yield name, ModelScore(float(value), spread, [_plain(each) for each in noted])


def _plain(noted: Any) -> Any:
    """numpy's numbers, and truth, as Python's numbers."""
    if isinstance(noted, tuple | list):
        return tuple(_plain(each) for each in noted)
    return float(noted) if hasattr(noted, "__float__") and not isinstance(noted, str) else noted


def _seed() -> None:
    """As lm_eval's own command does; samples may be drawn at random."""
    import random

    import numpy as np
    import torch

    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002  (lm_eval draws from it)
    torch.manual_seed(_SEED)


def _quiet_lm() -> Any:
    """lm_eval's class for transformers' models, without progress bars: progress has one place."""
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found,unused-ignore]

    class QuietLM(HFLM):  # type: ignore[misc,unused-ignore]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **more: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return QuietLM
