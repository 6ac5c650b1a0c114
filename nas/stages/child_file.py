"""Healed children on disk: one safetensors file per trial. It holds the configuration too, so it is complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from blocklib.block import Architecture
from blocklib.library import undamaged, write_whole
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import model_with, own_shape
from blocklib.precisions.parts import rounded_types
from blocklib.precisions.rounding import unpacked
from nas.errors import MissingFileError

_STORED = "stored:"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save_child(
    path: Path, child: PuzzleNasForCausalLM, found: Mapping[str, Any], stored: Mapping[str, Tensor] | None = None
) -> None:
    """The file appears whole or not at all. `found` holds the results of making it, as plain JSON. `stored` are rounded
    matrices as an engine's file holds them, by their names; they are kept in place of the numbers that they stand for.
    """
    config = json.dumps(child.config.to_dict())
    weights = child.state_dict()
    if child.config.tie_word_embeddings:
        del weights[_HEAD]
    for name, tensor in (stored or {}).items():
        del weights[name]
        weights[_STORED + name] = tensor
    write_whole(path, weights, {"format": "pt", "config": config, "found": json.dumps(found)})


def load_child(path: Path) -> PuzzleNasForCausalLM:
    """The child on weights as its file has them: `blocklib.parent.computing` runs it. Raises FileNotFoundError, saying
    what to do, where the trial was never built."""
    config = PuzzleNasConfig.from_dict(json.loads(_metadata(path)["config"]))
    with undamaged(path):
        weights = load_file(path)
    types = rounded_types(Architecture.parse(config.architecture), own_shape(config))
    weights = {
        name.removeprefix(_STORED): unpacked(tensor, types[name.removeprefix(_STORED)])
        if name.startswith(_STORED)
        else tensor
        for name, tensor in weights.items()
    }
    if config.tie_word_embeddings:
        weights[_HEAD] = weights[_EMBEDDING]
    return model_with(config, weights)


def stored_in_child(path: Path) -> dict[str, Tensor]:
    """The rounded matrices that were passed to `save_child`."""
    with undamaged(path), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_STORED)]  # noqa: SIM118  (it is no mapping)
        return {name.removeprefix(_STORED): file.get_tensor(name) for name in names}


def found_with(path: Path) -> dict[str, Any]:
    """The results that were passed to `save_child`."""
    found: dict[str, Any] = json.loads(_metadata(path)["found"])
    return found


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise MissingFileError(f"no child at {path}: the trial was never built in this home; build it with `nas build`")
    with undamaged(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}
