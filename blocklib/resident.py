"""Which of a parent's weights a device holds: all, or of a large parent only those that no layer has.

The layers of such a parent stay in their files, which main memory maps, and each goes to the device where it runs. A
pass then takes as long as reading the parent once, and passes of many tokens hide that.
"""

import torch

_SHARE = 0.5
"""The share of a device's free memory that a parent may take; the work on it needs the rest."""
_LAYERS = "model.layers."


def is_held_whole(held_bytes: int, device: torch.device) -> bool:
    """Whether a parent of so many bytes is held by `device`. Main memory holds what it maps, so it always is there."""
    if device.type not in ("cuda", "xpu"):
        return True
    free_bytes: int = torch.get_device_module(device.type).mem_get_info(device)[0]
    return held_bytes <= share_of(free_bytes)


def share_of(device_bytes: float) -> float:
    """How large a parent may be for a device of so much memory to hold it."""
    return _SHARE * device_bytes


def is_of_a_layer(name: str) -> bool:
    """Whether a tensor stays in its file where layers do: those of the norms and biases of a layer, too."""
    return name.startswith(_LAYERS)
