"""A trial's child and its parent on tasks of lm_eval, side by side. Each task is kept as soon as both have done
it, and is not measured again."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from rich.console import Console

from blocklib.parent import load_parent
from db import models
from db.evaluations import EvaluationRow, TaskGroupRow
from db.store import Store
from nas.errors import EvaluationError
from nas.evaluation.harness import EvaluatedModel, HowEvaluated, LoadedTask, Metrics, TaskLoader, harness_version
from nas.evaluation.paired import difference_error
from nas.evaluation.tasks import AskedTask, tasks_of
from nas.files.home import child_file, home_of
from nas.job.digest import digest
from nas.job.request import checkpoint_of
from nas.job.stored import request_of
from nas.stages.child_file import load_child
from nas.stages.export import as_assembled
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder
from nas.text.tokenizer import load_tokenizer


def evaluate_trial(
    store: Store, trial: models.TrialRow, asked: Sequence[str], how: HowEvaluated, console: Console
) -> tuple[EvaluationRow, ...]:
    """The metrics of the tasks, by task and metric. Raises EvaluationError for a task that is unknown, broken or
    gives no number, and FileNotFoundError where the trial was never built."""
    harness, tasks = harness_version(), tasks_of(asked)
    runs, groups = _Runs(trial.child_key, how, harness), _Groups(store, tasks, harness)
    known = {row.run for row in store.evaluations(trial.child_key)}
    unfinished = tuple(task for task in tasks if not runs.of_all(groups.names(task), task) <= known)
    if unfinished:
        with bar(console, f"evaluate trial {trial.id}", "tasks", doing="loading lm_eval") as shown:
            models_of = _Models(store, trial, how)
            loader = TaskLoader(unfinished)
            for number, task in enumerate(unfinished):
                shown(0, number, len(unfinished), f"{task.name}: loading its data")
                all_loaded = loader.load(task)
                groups.note(task, [loaded.name for loaded in all_loaded])
                for loaded in all_loaded:
                    run = runs.of(loaded.name, task)
                    if run not in known:
                        known.add(run)
                        found = []
                        for model in models_of.both:
                            shown(0, number, len(unfinished), f"{loaded.name}: the {model.what}")
                            found.append(model.on(loaded))
                        store.add_evaluations(list(runs.rows(run, loaded, *found)))
    wanted = {run for task in tasks for run in runs.of_all(groups.names(task), task)}
    return tuple(row for row in store.evaluations(trial.child_key) if row.run in wanted)


class _Groups:
    """The names of the tasks that each asked task stands for: several for a group of lm_eval, which are kept, so that
    lm_eval is asked once."""

    def __init__(self, store: Store, asked: Sequence[AskedTask], harness: str):
        self._store, self._harness = store, harness
        kept = store.task_groups([self._key(task) for task in asked])
        self._names = {key: row.tasks for key, row in kept.items()}

    def names(self, asked: AskedTask) -> list[str]:
        """Its own name, unless it is known as a group."""
        return self._names.get(self._key(asked), [asked.name])

    def note(self, asked: AskedTask, names: list[str]) -> None:
        if names != self.names(asked):
            key = self._key(asked)
            self._store.add_task_groups([TaskGroupRow(key=key, tasks=names)])
            self._names[key] = names

    def _key(self, asked: AskedTask) -> str:
        return digest(asked.name, asked.content, self._harness)


class _Runs:
    """The keys and rows of a child's evaluations."""

    def __init__(self, child_key: str, how: HowEvaluated, harness: str):
        self._child_key, self._how, self._harness = child_key, how, harness

    def of(self, name: str, asked: AskedTask) -> str:
        """The key of a task: the child's covers its parent."""
        return digest(self._child_key, name, asked.content, self._how.limit, self._how.chat, self._harness)

    def of_all(self, names: Sequence[str], asked: AskedTask) -> set[str]:
        return {self.of(name, asked) for name in names}

    def rows(self, run: str, loaded: LoadedTask, parent: Metrics, child: Metrics) -> Iterator[EvaluationRow]:
        for metric, theirs in child.values.items():
            own = parent.values[metric]
            error, is_paired = difference_error(own, theirs)
            yield EvaluationRow(
                key=digest(run, metric),
                child_key=self._child_key,
                run=run,
                task=loaded.name,
                version=child.version,
                metric=metric,
                higher_is_better=child.higher_is_better[metric],
                shots=child.shots,
                limit=self._how.limit,
                is_chat=self._how.chat,
                samples=child.samples,
                parent_value=own.value,
                child_value=theirs.value,
                parent_error=own.error,
                child_error=theirs.error,
                difference_error=error,
                is_paired=is_paired,
                harness=self._harness,
            )


class _Models:
    """The parent and the child in float32, as everything of a search is scored; loaded when the first task asks."""

    def __init__(self, store: Store, trial: models.TrialRow, how: HowEvaluated):
        self._search, self._trial, self._how = store.find_search(trial.search_id), trial, how
        self._home = home_of(store, self._search)

    @cached_property
    def both(self) -> tuple[EvaluatedModel, EvaluatedModel]:
        child = as_assembled(load_child(child_file(self._home, self._trial.child_key)), torch.float32)
        allowed = request_of(self._search).allows_remote_code
        folder = parent_folder(checkpoint_of(self._search.parent), self._home, code=allowed)
        tokenizer = load_tokenizer(folder, allowed)
        if self._how.chat and not tokenizer.chat_template:
            raise EvaluationError("--apply-chat-template: the parent's tokenizer has no chat template; leave it out")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        parent = load_parent(str(folder)).whole()
        named = (("parent", parent), ("child", child))
        pair = [EvaluatedModel(what, model.to(device), tokenizer, self._how) for what, model in named]  # type: ignore[arg-type]
        return pair[0], pair[1]
