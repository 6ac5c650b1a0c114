"""The parent's activations on a text: what enters each slot, and what is added there.

The parent runs over a text once, and its activations are cached in files. Whatever fits, trains or scores reads those,
in any process, instead of running the layers before its own again. A text that is too long for the disk is not cached:
its activations are computed when somebody asks for them.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.errors import ActivationsError
from blocklib.importance import channel_sizes
from blocklib.model import PuzzleNasForCausalLM
from blocklib.stream import SlotPass, inputs_of, slots

_SLOTS_BETWEEN = 8
"""The residual is cached at every eighth slot; what is added leads from one to the next."""


class Activations(Protocol):
    """A parent's activations on a text of token ids, [sequences, tokens]."""

    @property
    def ids_BT(self) -> Tensor: ...

    def over(self, rows: Tensor, end: int, first: int = 0) -> Iterator[SlotPass]:
        """The slots first to end - 1 of the sequences `rows`, [n], in order, on the parent's device."""
        ...


@dataclass(frozen=True, eq=False)
class ComputedActivations:
    """Each pass runs the model, from its first slot on."""

    model: PuzzleNasForCausalLM
    ids_BT: Tensor

    def over(self, rows: Tensor, end: int, first: int = 0) -> Iterator[SlotPass]:
        ids_BT = self.ids_BT[rows].to(self.model.device)
        return (here for here in slots(self.model, ids_BT, end) if here.slot >= first)


@dataclass(frozen=True, eq=False)
class CachedActivations:
    """Read from the files that `cache` has written into `folder`, for all sequences of `ids_BT`. A residual is `hidden`
    numbers of `dtype`, which go to `device`."""

    folder: Path
    ids_BT: Tensor
    hidden: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(model: PuzzleNasForCausalLM, ids_BT: Tensor, folder: Path) -> "CachedActivations":
        """Those of a model on a text, whose files are in that folder, or will be."""
        return CachedActivations(folder, ids_BT, model.config.hidden_size, model.model.norm.weight.dtype, model.device)

    def over(self, rows: Tensor, end: int, first: int = 0) -> Iterator[SlotPass]:
        """Raises ActivationsError where a file is not there or ends too early."""
        start = first - first % _SLOTS_BETWEEN
        residual = self._residuals(_residual(start), rows)
        for slot in range(start, end):
            added = self._residuals(_added(slot), rows)
            if slot >= first:
                yield SlotPass(slot, residual, added)
            residual = residual + added

    def channel_sizes(self, layer: int, width: int) -> Tensor:
        """For each sequence, the sums of the sizes of the layer's `width` FFN channels, [sequences, F]."""
        return self._read(_channels(layer), torch.arange(len(self.ids_BT)), (width,), torch.float32)

    def _residuals(self, name: str, rows: Tensor) -> Tensor:
        return self._read(name, rows, (self.ids_BT.shape[1], self.hidden), self.dtype)

    def _read(self, name: str, rows: Tensor, row: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        found = torch.empty(len(rows), *row, dtype=dtype)
        places, file = found.view(torch.uint8).numpy(), self.folder / name
        try:
            with file.open("rb") as opened:
                for place, number in zip(places, rows.tolist(), strict=True):
                    opened.seek(number * place.nbytes)
                    if opened.readinto(place.data) < place.nbytes:
                        raise ActivationsError(f"{file} ends within sequence {number}; run the same command again")
        except FileNotFoundError as error:
            raise ActivationsError(f"{file} is gone; run the same command again") from error
        return found.to(self.device)


@torch.no_grad()
def cache(model: PuzzleNasForCausalLM, ids_BT: Tensor, folder: Path, batch: int, batches: range) -> Iterator[int]:
    """Run a parent over some batches of a text, `batch` sequences each, and write its activations into a folder, where
    other processes may write those of other batches. Yields the number of each batch that is written.

    Raises ActivationsError where they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = 2 * len(model.model.layers)
    with ExitStack() as hooks:
        layers = model.model.layers
        inputs = [hooks.enter_context(inputs_of(layer.mlp.down_proj)) for layer in layers]
        for number in batches:
            start = number * batch
            for here in slots(model, ids_BT[start : start + batch].to(model.device), end):
                if here.slot % _SLOTS_BETWEEN == 0:
                    _write(folder / _residual(here.slot), here.entering_BTD, start)
                _write(folder / _added(here.slot), here.delta_BTD, start)
                if here.slot % 2:
                    layer = here.slot // 2
                    _write(folder / _channels(layer), channel_sizes(inputs[layer].pop()), start)
            yield number


def cached(model: PuzzleNasForCausalLM, ids_BT: Tensor, batch: int) -> CachedActivations:
    """Run a parent over a text, and cache its activations for as long as they are in use."""
    folder = Path(tempfile.mkdtemp(prefix="puzzle-nas-activations-"))
    found = CachedActivations.of(model, ids_BT, folder)
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    for _ in cache(model, ids_BT, folder, batch, range(-(-len(ids_BT) // batch))):
        pass
    return found


def cached_numbers(layers: int, hidden: int, tokens: int) -> int:
    """How many numbers the files hold for so many tokens."""
    slots = 2 * layers
    return tokens * hidden * (slots + -(-slots // _SLOTS_BETWEEN))


def _write(file: Path, values: Tensor, start: int) -> None:
    """Write rows, the first of them at the place of row `start`."""
    held: NDArray[np.uint8] = values.detach().cpu().contiguous().view(torch.uint8).numpy()
    try:
        # Other processes write other rows.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as opened:
            opened.seek(start * held[0].nbytes)
            rest = held.data.cast("B")
            while rest:
                rest = rest[opened.write(rest) :]
    except OSError as error:
        raise ActivationsError(
            f"{file} cannot be written ({error.strerror}); the parent's activations need room there while a search runs"
        ) from error


def _residual(slot: int) -> str:
    return f"{slot}.residual"


def _added(slot: int) -> str:
    return f"{slot}.added"


def _channels(layer: int) -> str:
    return f"{layer}.channels"
