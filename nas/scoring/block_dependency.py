"""Block dependency: how far the output of each block turns if a block before it is left out (FFN Fusion, arXiv
2503.18908, section 3.2).

M[i][j] is the mean over tokens of the cosine distance between what block j adds to the residual, h_j(x) = f_j(x) - x,
in the whole model and in the model without block i; 0 for j <= i. Blocks that hardly depend on each other can be
computed side by side: `nas/job/fusion_candidates.py` says which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from blocklib.checkpoint import inspect
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import load_parent
from blocklib.stream import Variant, delta, embed, rotary
from nas.job.data import Data, Source
from nas.job.fusion_candidates import Joining, LayerRun, ffn_runs, windows
from nas.job.paths import local_or_hub, matching_files
from nas.job.request import EMBEDDED, checkpoint_of, default_home
from nas.scoring.fidelity import numbers_at_once
from nas.terminal.console import Terminal
from nas.terminal.progress import bar
from nas.text.kept_tokens import load_tokens
from nas.text.parent_folder import parent_folder
from nas.text.tokenizer import load_tokenizer

# The stack of shortened models holds at most this many residual numbers (256 MiB in float32).
_STACK_AT_ONCE = 1 << 26
_SEQUENCE = 256
JOINING = Joining()


@dataclass(frozen=True)
class Dependency:
    """A parent's matrix, [layers][layers], over so many tokens, and what it offers to join."""

    parent: str
    tokens: int
    matrix: list[list[float]]
    runs: tuple[LayerRun, ...]
    windows: tuple[LayerRun, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        joined = {"runs": [vars(run) for run in self.runs], "windows": [vars(run) for run in self.windows]}
        return {"parent": self.parent, "tokens": self.tokens, "matrix": self.matrix} | joined


def dependency_of(
    parent: str,
    texts: Sequence[str] = (),
    tokens: int = 8192,
    joining: Joining = JOINING,
    console: Console | None = None,
) -> Dependency:
    """Load a parent and measure it on text. `parent` is `embedded`, a folder, a GGUF file or a hub
    id, as in a job file.

    `texts` are files and globs, relative to the current folder; none: Python's own sources. `console` is told how it
    goes. Raises a NasError that names what is wrong.
    """
    console = console or Terminal(quiet=True)
    here = Path.cwd()
    checkpoint = checkpoint_of(parent if parent == EMBEDDED else local_or_hub(parent, here))
    train: Source = matching_files(texts, here) if texts else "stdlib"
    with bar(console, "block dependency", "tokens", doing="loading the parent and the text") as shown:
        folder = parent_folder(checkpoint, Path(default_home()).expanduser(), say=shown.say)
        inspect(folder)  # its files first: loading them takes long
        tokenizer, loaded = load_tokenizer(folder), load_parent(str(folder))
        length = min(_SEQUENCE, tokens, loaded.config.max_position_embeddings)
        # Calibration is the head of distillation; the other sets are not read.
        data = Data(
            train=train,
            sequence_length=length,
            calibration_tokens=tokens,
            distillation_tokens=tokens,
            score_tokens=length,
            evaluation_tokens=length,
        )
        ids = load_tokens(data, tokenizer, loaded.shape.vocabulary).calibration
        shown.say("first batch")
        matrix = block_dependency(loaded.model, torch.from_numpy(ids.copy()), lambda *how_far: shown(0, *how_far))
    runs = ffn_runs(matrix, joining.longest, joining.share)
    return Dependency(parent, ids.size, matrix, runs, windows(matrix, joining.window))


@torch.no_grad()
def block_dependency(
    model: PuzzleNasForCausalLM, ids_BT: Tensor, heard: Callable[[int, int], None] = lambda done, total: None
) -> list[list[float]]:
    """The matrix of a parent or of any assembled child; in a child, blocks in parallel are one block.

    `ids_BT` is token ids, [sequences, tokens]; `heard` is told how many of them are done, of how many. Where block j
    adds nothing for a token, with block i and without, the distance is 0; where it adds nothing in one of the two only,
    it is 1. Raises NotFiniteError, naming the blocks.
    """
    blocks = _blocks(model)
    one = ids_BT.shape[1] * model.config.hidden_size
    # Nothing comes after the last block, so leaving it out changes no other.
    left_out = range(len(blocks) - 1)
    # If not even one sequence of all variants of a large model fits, several sweeps take a share of them each.
    at_once = max(1, _STACK_AT_ONCE // one - 1)
    batch = max(1, min(len(ids_BT), _STACK_AT_ONCE // (one * (min(at_once, len(blocks)) + 1))))
    sums_LL = torch.zeros(len(blocks), len(blocks), dtype=torch.float64)
    done = 0
    for ids in ids_BT.split(batch):
        for start in range(0, len(left_out), at_once):
            some = left_out[start : start + at_once]
            sums_LL[some.start : some.stop] += _sweep(model, blocks, some, ids)
        done += ids.numel()
        heard(done, ids_BT.numel())
    mean_LL = sums_LL / ids_BT.numel()
    for i, j in (~torch.isfinite(mean_LL)).nonzero().tolist():
        raise NotFiniteError(f"block {j}: its dependency on block {i} is NaN or infinite")
    matrix: list[list[float]] = mean_LL.tolist()
    return matrix


def _blocks(model: PuzzleNasForCausalLM) -> list[Variant]:
    grouped: list[list[nn.Module]] = []
    for layer in model.model.layers:
        if layer.config.parallel:
            grouped[-1].append(layer)
        else:
            grouped.append([layer])
    return [nn.ModuleList(group) if len(group) > 1 else group[0] for group in grouped]  # type: ignore[misc]


def _sweep(model: PuzzleNasForCausalLM, blocks: Sequence[Variant], left_out: range, ids_BT: Tensor) -> Tensor:
    """Distances summed over tokens, one row for each block left out: [left out, blocks], float64.

    The model without block i is the whole model up to there: it joins the stack with what enters block i.
    """
    whole_BTD = embed(model, ids_BT)
    tables = rotary(model, whole_BTD)
    stack_NBTD = whole_BTD.new_empty(len(left_out), *whole_BTD.shape)
    sums_NL = torch.zeros(len(left_out), len(blocks), dtype=torch.float64)
    joined, at_once = 0, max(1, numbers_at_once(whole_BTD.device) // whole_BTD.numel())
    for index, block in enumerate(blocks):
        added_BTD = delta(block, whole_BTD, tables)
        for start in range(0, joined, at_once):
            some_NBTD = stack_NBTD[start : min(start + at_once, joined)]
            other_NBTD = delta(block, some_NBTD.flatten(0, 1), tables).view_as(some_NBTD)
            distance_N = cosine_distance(added_BTD, other_NBTD).sum((1, 2))
            sums_NL[start : start + len(distance_N), index] = distance_N.cpu().double()
            some_NBTD += other_NBTD
        if index in left_out:
            stack_NBTD[joined] = whole_BTD
            joined += 1
        whole_BTD = whole_BTD + added_BTD
    return sums_NL


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - the cosine over the last dimension, from 0 to 2, in float32 at least; two zero vectors are 0 apart."""
    wide = torch.promote_types(one.dtype, torch.float32)
    cosine = torch.cosine_similarity(one.to(wide), other.to(wide), dim=-1, eps=torch.finfo(wide).tiny)
    both_zero = ~(one.any(-1) | other.any(-1))
    return (1 - cosine).clamp(min=0).masked_fill(both_zero, 0)
