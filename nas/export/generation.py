"""The parent's generation settings for a child, without those that transformers refuses. transformers loads some
settings that it does not save, and refuses some that other programs wrote. Such a setting is left out, with a note.
This file knows no model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from blocklib.checkpoint import read_json
from blocklib.errors import CheckpointError

_DECIDE = ("do_sample", "num_beams", "return_dict_in_generate", "cache_implementation")
"""These are checked first, because transformers accepts other settings only together with them."""
_NOT_SETTINGS = ("_from_model_config", "transformers_version")


@dataclass(frozen=True)
class Carried:
    """Settings that transformers saves and loads. Each of the `notes` is a sentence about a setting of the parent that
    is left out."""

    settings: GenerationConfig
    notes: tuple[str, ...] = ()


def generation_of(checkpoint: str) -> Carried:
    """The generation settings of a checkpoint, a folder or a hub id.

    Without such a file they come from its configuration, as in transformers itself.
    """
    notes: tuple[str, ...] = ()
    try:
        said = _object(checkpoint, GENERATION_CONFIG_NAME)
    except CheckpointError as error:
        said, notes = None, (f"{GENERATION_CONFIG_NAME} of the parent is left out: it {error.cause}.",)
    if said is None:
        configuration = _object(checkpoint, CONFIG_NAME) or {}
        said = {name: value for name, value in configuration.items() if hasattr(GenerationConfig(), name)}
    carried = _mended({name: value for name, value in said.items() if name not in _NOT_SETTINGS and value is not None})
    return Carried(carried.settings, notes + carried.notes)


def _object(checkpoint: str, name: str) -> dict[str, Any] | None:
    """Read a file of the checkpoint; None where there is none. Raises CheckpointError where it is no JSON object."""
    try:
        found = cached_file(checkpoint, name)
    except OSError:
        return None
    assert found is not None
    return read_json(Path(found))


def _mended(said: dict[str, Any]) -> Carried:
    """Every setting that transformers accepts together with the earlier ones."""
    kept: dict[str, Any] = {}
    notes = []
    if said.get("use_cache") is False:
        said = {name: value for name, value in said.items() if name != "use_cache"}
        notes.append("The parent generates without a KV cache; the child has one, as it was timed with it.")
    for name in sorted(said, key=lambda name: (name not in _DECIDE, name)):
        refused = _refusal(kept | {name: said[name]})
        if refused is None:
            kept[name] = said[name]
        else:
            why = refused.removeprefix(f"`{name}`: ")
            notes.append(f"The parent's generation setting {name}: {said[name]!r} is left out: {why}.")
    return Carried(GenerationConfig(**kept), tuple(notes))


def _refusal(settings: dict[str, Any]) -> str | None:
    """The reason why transformers does not load or save such settings; None if it does."""
    try:
        GenerationConfig(**settings).validate(strict=True)
    except Exception as error:  # The file may hold anything, so any exception of the library counts as a refusal.
        return _line(error)
    return None


def _line(error: Exception) -> str:
    """The first line of the error that is about the setting."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("GenerationConfig is invalid")]
    return (lines[0] if lines else type(error).__name__).removeprefix("- ").rstrip(".").strip()
