"""The moments of what enters each matrix of a module, from passes of the module."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from blocklib.precisions.moments import InputMoments, MomentMeter


class LayerMoments:
    """Gathers them for all linear maps of one module. Maps that read the same tensor, as queries, keys and values do,
    share one meter, and so what is derived from it."""

    def __init__(self, module: nn.Module):
        self._maps = {f"{name}.weight": each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
        self._meters: dict[str, MomentMeter] = {}
        self._leaders: dict[tuple[int, int], str] = {}

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every pass of the module inside the block counts."""
        with ExitStack() as hooks:
            for name, each in self._maps.items():
                hooks.callback(each.register_forward_pre_hook(partial(self._read, name)).remove)
            yield

    def result(self) -> dict[str, InputMoments]:
        """By the names of the matrices. Raises SettingError where one saw no input."""
        known: dict[int, InputMoments] = {}
        for meter in self._meters.values():
            known.setdefault(id(meter), InputMoments(meter.moments_II()))
        return {name: known[id(meter)] for name, meter in self._meters.items()}

    def _read(self, name: str, module: nn.Module, arguments: tuple[Tensor, ...], *rest: Any) -> None:
        inputs = arguments[0]
        if name not in self._meters:
            # In the first pass: whoever reads memory that another read before reads the same.
            leader = self._leaders.setdefault((inputs.data_ptr(), inputs.numel()), name)
            self._meters[name] = MomentMeter() if leader == name else self._meters[leader]
        if name in self._leaders.values():
            self._meters[name].add(inputs)
