"""A parent as plain arrays, to hand to other processes.

Ray shares numpy arrays between the processes of a node without copying, tensors not; so weights travel as arrays
(bfloat16 as its bits) and become tensors over the same memory. They arrive read-only, which a parent is.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.model import PuzzleNasConfig
from blocklib.parent import Parent, model_with, own_shape


@dataclass(frozen=True, eq=False)
class PackedParent:
    """Everything of a Parent, picklable."""

    source: str
    digest: str
    config: Mapping[str, Any]
    dtypes: Mapping[str, str]
    arrays: Mapping[str, NDArray[Any]]


def pack(parent: Parent) -> PackedParent:
    weights = parent.model.state_dict()
    return PackedParent(
        source=parent.source,
        digest=parent.digest,
        config=parent.model.config.to_dict(),
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in weights.items()},
        arrays={name: _bits(tensor) for name, tensor in weights.items()},
    )


def unpack(packed: PackedParent, device: str = "cpu") -> Parent:
    """The parent again; on the CPU it shares the arrays' memory."""
    config = PuzzleNasConfig.from_dict(dict(packed.config))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        weights = {
            name: torch.from_numpy(array).view(getattr(torch, packed.dtypes[name]))
            for name, array in packed.arrays.items()
        }
    model = model_with(config, weights)
    return Parent(packed.source, model.to(device), own_shape(config), packed.digest)  # type: ignore[arg-type]


def _bits(tensor: Tensor) -> NDArray[Any]:
    whole = tensor.detach().cpu().contiguous()
    bits: NDArray[Any] = (whole.view(torch.uint16) if whole.dtype == torch.bfloat16 else whole).numpy()
    return np.ascontiguousarray(bits)
