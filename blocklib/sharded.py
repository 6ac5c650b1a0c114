"""A model divided among processes: each holds a slice of every matrix of every layer (FSDP2, torch's `fully_shard`).

A layer is whole in a process only while it runs there, in the type that its weights are stored in. Embeddings and head
stay whole in each: training does not change them, and a head is read outside of any layer. Knows no trainer.
"""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from blocklib.model import PuzzleNasForCausalLM


def ranks() -> int:
    """How many processes share the models of this one, itself included."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def shard(model: PuzzleNasForCausalLM, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Divide a model among all processes of the group, in place; every process calls this with the same model.

    What a process keeps goes to `device`, a layer at a time, converted to `dtype`; None: as it is stored. Weights that
    were mapped from files are copied slice by slice, and the files let go.
    """
    mesh = init_device_mesh(device.type, (ranks(),))
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) or module is model.lm_head]
    whole = {parameter for table in tables for parameter in table.to(device, dtype).parameters()}
    for layer in model.model.layers:
        fully_shard(layer.to(dtype=dtype), mesh=mesh)
    model.model.norm.to(dtype=dtype)
    fully_shard(model, mesh=mesh, ignored_params=whole)
