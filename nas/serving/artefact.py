"""A model that somebody could serve: a GGUF file, or a checkpoint's folder, named by its path."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklib.gguf_header import SUFFIX, GgufHeader, read_header
from nas.errors import MissingFileError, UsageError


@dataclass(frozen=True)
class Artefact:
    """`name` is what it is called in a table. `is_ours`: this package wrote it, so that its code may run."""

    name: str
    path: Path
    is_ours: bool = False

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == SUFFIX

    @property
    def engine(self) -> str:
        """The engine that times it here."""
        return "llama_cpp" if self.is_gguf else "torch"

    @property
    def header(self) -> GgufHeader:
        """Raises CheckpointError for what is no GGUF file, or is cut."""
        return read_header(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """A folder's config.json."""
        file = self.path / "config.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is no JSON ({error}); export the model again") from error
        return found

    @property
    def has_chat_template(self) -> bool:
        if self.is_gguf:
            return "tokenizer.chat_template" in self.header.keys
        settings = self.path / "tokenizer_config.json"
        return (self.path / "chat_template.jinja").is_file() or (
            settings.is_file() and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
        )


def artefact_at(path: Path) -> Artefact:
    """A .gguf file, a folder that holds one and no checkpoint, or a checkpoint's folder.

    Raises MissingFileError where there is none, UsageError where a folder holds neither or several.
    """
    if path.is_file():
        if path.suffix != SUFFIX:
            raise UsageError(f"{path} is no {SUFFIX} file; give one, or a folder that was exported")
        return Artefact(path.stem, path)
    if not path.is_dir():
        raise MissingFileError(
            f"{path} is not there; give a trial's number, a folder that was exported or a .gguf file"
        )
    if (path / "config.json").is_file():
        return Artefact(path.resolve().name, path)
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "neither config.json nor a .gguf file"
        raise UsageError(f"{path} holds {found}; name one model")
    return Artefact(path.resolve().name, files[0])
