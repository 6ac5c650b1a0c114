"""Low-rank adapters (LoRA, arXiv 2106.09685, section 4) on every matrix of a module, merged into it after training.

DIP (arXiv 2412.01380, section 4) trains nothing else: the pruned FFN keeps the parent's weights and learns a low-rank
correction. A merged module has the tensors it had before.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blocklib.errors import SettingError


class _Adapter(nn.Module):
    """weight + B A. A is random and B zero, so that it starts as nothing."""

    def __init__(self, weight: Tensor, rank: int, seeded: torch.Generator):
        super().__init__()
        *stack, rows, columns = weight.shape
        down_RC = torch.randn(*stack, rank, columns, generator=seeded) / columns**0.5
        # In float32, whatever type the weight is stored in.
        self.down_RC = nn.Parameter(down_RC.to(weight.device))
        self.up_OR = nn.Parameter(torch.zeros(*stack, rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up_OR @ self.down_RC


def add_adapters(model: nn.Module, rank: int) -> None:
    """Give every matrix of `model`, or of a stack of them, an adapter of rank `rank`, and let nothing else be trained.

    Raises SettingError where no matrix is wider and higher than the rank.
    """
    model.requires_grad_(False)
    seeded = torch.Generator().manual_seed(0)
    matrices = [
        (module, name)
        for module in model.modules()
        for name, tensor in module.named_parameters(recurse=False)
        if tensor.ndim >= 2 and min(tensor.shape[-2:]) > rank
    ]
    if not matrices:
        raise SettingError(f"no matrix is wider and higher than lora_rank {rank}; give a smaller rank")
    for module, name in matrices:
        adapter = _Adapter(getattr(module, name), rank, seeded)
        parametrize.register_parametrization(module, name, adapter, unsafe=True)


def adapter_of(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of the adapter of one tensor of `module`; none where it has none."""
    if not parametrize.is_parametrized(module, name):
        return []
    return list(module.get_submodule(f"parametrizations.{name}").parameters())


def merge_adapters(model: nn.Module) -> None:
    """Put every adapter into its matrix: the same function, and the names of before."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
