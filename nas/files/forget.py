"""Trials deleted: their rows, and the children in the database's own home that no trial is any more.

All measurements of blocks stay, since other trials and searches rest on it; so do exported folders, which somebody
may serve from. A child that another process makes right now stays too, and so does one in a home that may be another
database's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from db import models
from db.errors import NotFoundError
from db.store import Store
from nas.errors import UsageError
from nas.files.home import child_file, home_of, is_ours, losses_folder


@dataclass(frozen=True)
class Deleted:
    """Numbers of trials, the files that went with them, the exported folders that are left, and what could not go."""

    trials: tuple[int, ...]
    files: tuple[Path, ...]
    exports: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """Numbers of trials, as a command is told them: "3", or "3,5,8-12"."""

    ranges: tuple[tuple[int, int], ...]

    @staticmethod
    def parse(text: str) -> "Numbers":
        ranges = []
        for part in text.split(","):
            first, dash, last = (each.strip() for each in part.partition("-"))
            are_numbers = first.isdecimal() and (last.isdecimal() or not dash) and len(part) <= _DIGITS
            if not are_numbers or (dash and int(last) < int(first)):
                raise UsageError(f"--ids {part.strip()[:_DIGITS]!r}: write numbers of trials, like 3,5,8-12")
            ranges.append((int(first), int(last or first)))
        return Numbers(tuple(ranges))

    def pick(self, trials: Sequence[models.TrialRow]) -> list[models.TrialRow]:
        """Those of them. Raises NotFoundError where one that is named by itself is not there; a range may have gaps."""
        there = {trial.id for trial in trials}
        for first, last in self.ranges:
            if first == last and first not in there:
                raise NotFoundError(f"--ids {first}: there is no such trial among those asked for")
        return [trial for trial in trials if any(first <= trial.id <= last for first, last in self.ranges)]


_DIGITS = 40
"""Characters of a number, or of a range of two, beyond which it is a slip."""


def exports_of(trials: Sequence[models.TrialRow]) -> tuple[Path, ...]:
    """The folders that stay when they are deleted."""
    return tuple(Path(trial.child_path) for trial in trials if trial.child_path and Path(trial.child_path).exists())


def delete_trials(store: Store, trials: Sequence[models.TrialRow], searches: Mapping[str, models.SearchRow]) -> Deleted:
    """`searches` by their ids."""
    found = {name: home_of(store, searches[name]) for name in {trial.search_id for trial in trials}}
    gone = set(store.delete_trials([trial.id for trial in trials]))
    exports = exports_of(trials)
    homes = {trial.child_key: found[trial.search_id] for trial in trials if trial.kl is not None}
    files, notes = _remove_children(store, {key: home for key, home in homes.items() if key in gone})
    return Deleted(tuple(trial.id for trial in trials), files, exports, notes)


def _remove_children(store: Store, homes: Mapping[str, Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The children of these keys, each from its home. A missing child is no mistake: a home may be elsewhere."""
    from filelock import FileLock, Timeout

    files, notes = [], []
    for key, home in homes.items():
        file, checkpoints = child_file(home, key), home / "checkpoints" / key
        if not file.exists():
            continue
        if not is_ours(store, home):
            notes.append(f"{file} stays: {home} may be another database's; remove it where it is not")
            continue
        try:
            checkpoints.parent.mkdir(exist_ok=True)
            with FileLock(f"{checkpoints}.lock", timeout=0):
                file.unlink()
                for folder in (checkpoints, losses_folder(home, key)):
                    rmtree(folder, ignore_errors=True)
                files.append(file)
        except Timeout:
            notes.append(f"{file} stays: another process is making that child")
        except OSError as error:
            notes.append(f"{file} stays: {error.strerror or error}")
    return tuple(files), tuple(notes)
