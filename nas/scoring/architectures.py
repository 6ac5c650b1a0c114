"""Whole architectures scored for what they are: how far each, assembled and not trained, moves the parent's output.

The sum of replace-1 scores (`nas/scoring/replace_one.py`) only predicts this. Architectures that begin alike share what
they begin with: they are walked as a tree, slot by slot, and all that take the same choice next take it together.
Memory holds one stack of residuals per slot of the way down.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from blocklib.block import SKIP, Architecture, Choice
from blocklib.distil import Progress
from blocklib.kind import Weights
from blocklib.parent import Parent
from blocklib.precisions.keys_and_values import KeptType, kept_in
from blocklib.stream import Rotary, Variant, delta, embed, rotary, variant
from blocklib.tables import Ends
from nas.scoring.fidelity import Fidelity, FidelityMeter, numbers_at_once


@torch.no_grad()
def score_whole(
    parent: Parent,
    architectures: Sequence[Architecture],
    weights_of: Callable[[Choice], Weights],
    ids_BT: Tensor,
    batch: int | None = None,
) -> Iterator[Progress | dict[Architecture, Fidelity]]:
    """Progress as it goes, then every architecture's fidelity, its `lm_loss` being the rise over the parent's own.

    `weights_of` gives the tensors of a choice, the parent's own ones included, as `blocklib.stream.variant` wants them;
    it is asked once for each. `ids_BT` are token ids, [sequences, tokens]; `batch` sequences run at a time, None: as
    many as go through the parent well. Raises NotFiniteError, naming the architecture.
    """
    if not architectures:
        yield {}
        return
    wanted = list(dict.fromkeys(architectures))
    # Those of one embedding begin alike, and those that keep keys and values alike run alike.
    kept = {architecture: KeptType.of(architecture, parent.config) for architecture in wanted}
    wanted.sort(key=lambda one: (list(map(str, one.tables)), kept[one].name, kept[one].interleaved))
    layers = {
        choice: variant(parent.model, choice, weights_of(choice))
        for choice in dict.fromkeys(choice for architecture in wanted for choice in _path(architecture))
        if choice.what != SKIP
    }
    around = [
        _Around(Ends.of((choice, weights_of(choice)) for choice in tables), list(same), type)
        for (tables, type), same in groupby(wanted, key=lambda one: (one.table_choices(), kept[one]))
    ]
    one = ids_BT.shape[1] * parent.shape.hidden
    batch = batch or max(1, numbers_at_once(ids_BT.device) // one)
    head = parent.model.lm_head
    meter, own = FidelityMeter(list(map(str, wanted)), head), FidelityMeter(["parent"], head)
    done = 0
    for ids in ids_BT.split(batch):
        parent_BTD = parent.model.model(ids.long(), use_cache=False).last_hidden_state
        own.add(ids, parent_BTD, [parent_BTD])
        before = 0
        for some in around:
            entering_BTD = embed(parent.model, ids, some.ends.embedding_VD)
            tree = _PathTree([*map(_path, some.architectures)], layers, rotary(parent.model, entering_BTD))
            with kept_in(some.kept):
                for at, residuals_NBTD in tree.leaves(entering_BTD):
                    final_BTD = list(parent.model.model.norm(residuals_NBTD))
                    meter.add(
                        ids, parent_BTD, final_BTD, [before + place for place in at], some.ends.head(parent.config)
                    )
            before += len(some.architectures)
        done += ids.numel()
        yield Progress(done, ids_BT.numel())
    base, found = own.result()["parent"].lm_loss, meter.result()
    yield {
        architecture: Fidelity(f.kl, f.lm_loss - base, f.top1_agreement, f.hidden_cosine)
        for architecture in wanted
        for f in [found[str(architecture)]]
    }


@dataclass(frozen=True, eq=False)
class _Around:
    """Architectures between the same ends, with keys and values kept alike."""

    ends: Ends
    architectures: Sequence[Architecture]
    kept: KeptType


def _path(architecture: Architecture) -> tuple[Choice, ...]:
    """Its choices within the layers."""
    return tuple(choice for choice in architecture.choices() if not choice.is_table)


class _PathTree:
    """Paths of choices that share their beginnings. N paths, each known by its place among them."""

    def __init__(self, paths: Sequence[Sequence[Choice]], layers: dict[Choice, Variant], tables: Rotary):
        self._paths = paths
        self._layers = layers
        self._tables = tables

    def leaves(self, entering_BTD: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Some paths at a time, by their places, and the residual after the last choice of each, [N, B, T, D]."""
        self._at_once = max(1, numbers_at_once(entering_BTD.device) // entering_BTD.numel())
        yield from self._down(0, [list(range(len(self._paths)))], entering_BTD[None])

    def _down(self, depth: int, members: list[list[int]], residuals_NBTD: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """`members` are the paths that share each residual; all have made `depth` choices."""
        ended = [index for index, paths in enumerate(members) if len(self._paths[paths[0]]) == depth]
        if ended:
            # Two paths of one architecture are one path: whoever ends here is alone.
            yield [members[index][0] for index in ended], residuals_NBTD[ended]
        following: dict[Choice, dict[int, list[int]]] = {}
        for index, paths in enumerate(members):
            for path in paths:
                if len(self._paths[path]) > depth:
                    following.setdefault(self._paths[path][depth], {}).setdefault(index, []).append(path)
        for choice, by_index in following.items():
            sharing = list(by_index.items())
            for start in range(0, len(sharing), self._at_once):
                some = sharing[start : start + self._at_once]
                here_NBTD = residuals_NBTD[[index for index, _ in some]]
                if choice in self._layers:
                    flat = here_NBTD.flatten(0, 1)
                    here_NBTD = here_NBTD + delta(self._layers[choice], flat, self._tables).view_as(here_NBTD)
                yield from self._down(depth + 1, [paths for _, paths in some], here_NBTD)
