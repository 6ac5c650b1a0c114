"""Which tasks are asked for: names of lm_eval's own, YAML files, and folders of such files. Needs no lm_eval.

A file's data lies beside it: relative paths in it start at its folder. The key of a task of a file covers the file and
everything in its folder that it names, so a changed line of data is another task.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas.errors import EvaluationError

_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class AskedTask:
    """A name that lm_eval knows, a task or a group of tasks; or a task's file, with a digest of what it reads."""

    name: str
    file: Path | None = None
    content: str = ""


class _AnyTags(yaml.SafeLoader):
    """Reads `!function` and other tags of lm_eval as nothing."""


_AnyTags.add_multi_constructor("", lambda loader, suffix, node: None)


def tasks_of(asked: Sequence[str]) -> tuple[AskedTask, ...]:
    """The tasks that `--tasks` names, each once, in that order; an item may hold several names with commas.

    Raises EvaluationError for a file that is none of a task, and a folder that holds no task.
    """
    items = [item.strip() for text in asked for item in text.split(",") if item.strip()]
    if not items:
        raise EvaluationError("no task is named; give names of lm_eval's tasks, YAML files, or folders of them")
    found: dict[str, AskedTask] = {}
    for item in items:
        for task in _named(item):
            other = found.setdefault(task.name, task)
            if other != task:
                raise EvaluationError(f"two tasks are called {task.name}: in {other.file} and {task.file}; rename one")
    return tuple(found.values())


def _named(item: str) -> Iterator[AskedTask]:
    path = Path(item).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in _ENDINGS]
        tasks = [task for file in files if (task := _in_file(file)) is not None]
        if not tasks:
            raise EvaluationError(f"{path}: no YAML file in it holds a task (a key `task` with a name)")
        yield from tasks
    elif path.suffix in _ENDINGS:
        if not path.is_file():
            raise EvaluationError(f"{path} does not exist")
        task = _in_file(path)
        if task is None:
            raise EvaluationError(f"{path}: has no key `task` with a name, so it is no task of lm_eval")
        yield task
    else:
        yield AskedTask(item)


def _in_file(file: Path) -> AskedTask | None:
    """The task of a file; None for one that is only included by others, or a group."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        values: Any = yaml.load(text, _AnyTags)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())[:200]
        raise EvaluationError(f"{file}: is not YAML: {said}") from error
    name = values.get("task") if isinstance(values, dict) else None
    return AskedTask(name, file.resolve(), _digest(file, text)) if isinstance(name, str) else None


def _digest(file: Path, text: str) -> str:
    state = hashlib.blake2b(text.encode())
    for path in sorted(file.parent.rglob("*")):
        if path.is_file() and path != file and (path.name in text or (path.suffix == ".py" and path.stem in text)):
            state.update(path.relative_to(file.parent).as_posix().encode())
            state.update(path.read_bytes())
    return state.hexdigest()[:16]
