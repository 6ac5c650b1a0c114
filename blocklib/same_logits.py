"""Our model of a checkpoint held against the family's own class: whatever a configuration holds that we do not know of
shows in the logits.

Neither model is ever in memory as a whole: accelerate hands each of their modules its weights when it runs, and takes
them away. Embedding and head are cut to the first tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor
from transformers import AutoModelForCausalLM

from blocklib.errors import CheckpointError
from blocklib.loading import Readable
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.stored_weights import mapped

_COMPARED = 8
"""Tokens on which the models are compared."""
_VOCABULARY = 1024
"""Tokens that logits are computed for, at most."""
_ROUNDING = {torch.float32: 1e-3}
"""Tolerance of logits, 0.1 for other dtypes: some families are computed in another order than by their own classes."""


@torch.no_grad()
def check_same_logits(
    found: Readable, config: PuzzleNasConfig, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Raise CheckpointError where our model does not compute what the checkpoint's own class does, to what rounding may
    do, or where that is not finite."""
    folder, vocabulary = found.checkpoint.folder, min(_VOCABULARY, found.shape.vocabulary)
    ids_BT = torch.arange(_COMPARED).remainder(vocabulary).unsqueeze(0)
    stored = _Cut(list(found.tensors), lambda name: mapped(found.tensors[name]))
    stock = _model(AutoModelForCausalLM.from_config, found.config, stored, dtype)
    theirs = stock(ids_BT, use_cache=False).logits.float()
    build = partial(PuzzleNasForCausalLM._from_config, attn_implementation="sdpa")
    own = _model(build, config, _Cut(list(weights), weights.__getitem__), dtype)
    ours = own(ids_BT, use_cache=False).logits.float()
    if not torch.isfinite(theirs).all():
        raise CheckpointError(folder, "its logits are not finite", "its weights or its config.json are damaged")
    most = _ROUNDING.get(dtype, 0.1)
    if not torch.allclose(ours, theirs, rtol=most, atol=most * float(theirs.std())):
        raise CheckpointError(
            folder,
            f"{type(stock).__name__} computes other logits than this package's model of it",
            "its config.json holds something this package does not know; please report it",
        )


class _Cut(Mapping[str, Tensor]):
    """Tensors, those of a row for each token with the first tokens only."""

    def __init__(self, names: list[str], tensor_of: Callable[[str], Tensor]):
        self._names, self._tensor_of = names, tensor_of

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensor_of(name)
        is_table = name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight"))
        return tensor[:_VOCABULARY] if is_table else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _model(build: Any, config: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    cut = deepcopy(config)
    cut.vocab_size, cut.pad_token_id = min(_VOCABULARY, config.vocab_size), None
    with init_empty_weights(include_buffers=False):
        model = build(cut, dtype=dtype)
    model.eval()
    cpu_offload(model, execution_device=torch.device("cpu"), state_dict=weights)
    return model
