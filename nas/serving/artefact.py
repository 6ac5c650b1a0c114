"""A model that somebody could serve: a GGUF file, or a checkpoint's folder, named by its path."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blocklib.gguf_header import SUFFIX, GgufHeader, read_header
from nas.errors import MissingFileError, UsageError

GGUF_ENGINES = ("llama_cpp",)
FOLDER_ENGINES = ("torch", "torch_compile", "vllm")


@dataclass(frozen=True)
class Artefact:
    """`name` is what it is called in a table. `is_ours`: this package wrote it, so that its code may run. `timed_in`:
    the engine that is asked to time it; None: the usual one. `kv_cache`: the type of keys and values that llama.cpp is
    to serve it with; None: its usual one."""

    name: str
    path: Path
    is_ours: bool = False
    timed_in: str | None = None
    kv_cache: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == SUFFIX

    @property
    def form(self) -> str:
        return "a .gguf file" if self.is_gguf else "a folder"

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that can time it here, the usual one first."""
        return GGUF_ENGINES if self.is_gguf else FOLDER_ENGINES

    @property
    def engine(self) -> str:
        """The engine that times it here."""
        return self.timed_in or self.engines[0]

    def timed_by(self, engine: str) -> "Artefact":
        """The same, timed in this engine. Raises UsageError where the engine does not run such a model here."""
        if engine not in self.engines:
            raise UsageError(
                f"{self.path} is {self.form}, which runs in {' or '.join(self.engines)} here, not in {engine}"
            )
        return replace(self, timed_in=engine)

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
