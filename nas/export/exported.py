"""The result of an export: a folder that is whole or absent, and its model card. This file knows no format. Every
exporter writes into `whole_folder`, reloads what it wrote there, and only then lets it appear under its own name.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from nas.errors import OutputExistsError
from nas.files.permissions import open_as_usual
from nas.files.process_folder import process_folder


@dataclass(frozen=True)
class Exported:
    """An exported folder. It was reloaded, and its logits are the child's.

    `max_logit_difference` is absolute, in float32 on the CPU. `notes` are the limits of this export, a sentence each.
    """

    folder: Path
    format: str
    max_logit_difference: float
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, renamed to `out` at the end of the block; removed where the block raises. So
    are those that processes of this machine left when they were killed.

    Raises OutputExistsError if `out` exists and is not an empty folder, at the start or at the end.
    """
    taken = OutputExistsError(f"{out} exists and is not empty: remove it, or export to another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise taken
    beside = process_folder(out.parent, out.name)
    try:
        yield beside
        open_as_usual(beside)
        for name in files_in(beside):
            with (beside / name).open("rb") as written:
                os.fsync(written.fileno())
        try:
            # rename(2) replaces only an empty folder.
            beside.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise taken from error
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def files_in(folder: Path) -> tuple[str, ...]:
    """The files in it and in its folders, relative to it."""
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


@dataclass(frozen=True)
class Card:
    """A folder's README.md: the caller's Markdown, the export's limits, how to load it, under YAML front matter.

    Front matter at the start of the caller's `text` (base_model, license, ...) is kept.
    """

    text: str
    loading: str
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        limits = "".join(f"- {note}\n" for note in self.notes)
        body = f"{self.text.rstrip()}\n\n## Loading\n\n{self.loading.strip()}\n"
        readme = ModelCard(body + (f"\n## Limits\n\n{limits}" if limits else ""))
        data: Any = readme.data
        data.library_name = data.get("library_name") or "transformers"
        data.pipeline_tag = data.get("pipeline_tag") or "text-generation"
        data.tags = list(dict.fromkeys([*(data.get("tags") or ()), "puzzle-nas", *self.tags]))
        readme.save(folder / "README.md")
