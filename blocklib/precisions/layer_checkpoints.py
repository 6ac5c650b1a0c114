"""Checkpoints of a child that is being rounded: a run that was killed goes on behind the last layer that is done."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from blocklib.kind import Weights
from blocklib.library import undamaged, write_whole

_STORED = "stored:"


@dataclass(frozen=True)
class LayerCheckpoints:
    """A folder with one file for each layer that is done."""

    folder: Path

    def save(self, index: int, weights: Weights, stored: Weights) -> None:
        """The weights of a layer, its rounded matrices as they lie in a file (`stored`); both by their names in it."""
        others = {name: tensor for name, tensor in weights.items() if name not in stored}
        write_whole(self._file(index), others | {_STORED + name: tensor for name, tensor in stored.items()}, {})

    def load(self, index: int, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """The weights that are not rounded, and the rounded matrices; None where the layer is not done."""
        file = self._file(index)
        if not file.is_file():
            return None
        with undamaged(file):
            held = load_file(file, str(device))
        stored = {name.removeprefix(_STORED): held.pop(name) for name in list(held) if name.startswith(_STORED)}
        return held, stored

    def _file(self, index: int) -> Path:
        return self.folder / f"layer{index}.safetensors"
