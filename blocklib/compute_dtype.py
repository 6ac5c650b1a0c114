"""A model that computes in one type, on one device, on weights that stay stored in another type, or elsewhere.

Each is converted where it is used. A layer at work holds its own weights a second time, in the type it computes in, and
no other layer does; of a large head, the largest matrix there is, only a few rows are there a second time.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

_LARGE, _TILE = 1 << 26, 1 << 24
"""A head of more numbers is converted so many at a time. Every logit stays what it is."""

converted_once = parametrize.cached
"""Inside this `with`, a weight that was converted stays so: for a layer that is used several times in turn."""


class _Converted(nn.Module):
    def __init__(self, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self._dtype, self._device = dtype, device

    def forward(self, stored: Tensor) -> Tensor:
        # In this order, fewer bytes go to the device.
        return stored.to(self._device).to(self._dtype)


def compute_in(dtype: torch.dtype, model: nn.Module, device: torch.device, matrices: torch.dtype | None = None) -> None:
    """Have a model compute in `dtype` on `device`, where its embeddings are, and read its matrices in a type of their
    own; None: in `dtype`. A parameter that is so already stays as it is."""
    head = getattr(model, "lm_head", None)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(module, nn.Embedding):
                # A few rows are read of it.
                if parameter.dtype != dtype:
                    module.register_forward_hook(_output_in(dtype))
                continue
            read = dtype if matrices is None or parameter.ndim == 1 else matrices
            if (parameter.dtype, parameter.device) == (read, device):
                continue
            if module is head and isinstance(module, nn.Linear) and parameter.numel() > _LARGE:
                step = "product" if hasattr(module, "product") else "forward"
                setattr(module, step, partial(_in_tiles, module, read, device))
            else:
                parametrize.register_parametrization(module, name, _Converted(read, device), unsafe=True)


def converted_numbers(head_numbers: int) -> int:
    """How many numbers of a head of so many are converted at a time."""
    return _TILE if head_numbers > _LARGE else head_numbers


def _in_tiles(head: nn.Linear, dtype: torch.dtype, device: torch.device, hidden: Tensor) -> Tensor:
    found = hidden.new_empty(*hidden.shape[:-1], head.out_features)
    rows = max(1, _TILE // head.in_features)
    for start in range(0, head.out_features, rows):
        some = head.weight[start : start + rows].to(device).to(dtype)
        found[..., start : start + rows] = linear(hidden, some)
    return found


def _output_in(dtype: torch.dtype) -> Any:
    def convert(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    return convert
