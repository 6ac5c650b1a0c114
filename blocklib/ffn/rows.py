"""Matrices stored a row per input, [in, out], so that a product with a sparse vector reads only the rows it needs."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class RowLinear(nn.Module):
    """x @ weight + bias: an nn.Linear whose weight is transposed, [in, out]."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = row_product(inputs, self.weight)
        return output if self.bias is None else output + self.bias

    def picked(self, index_K: torch.Tensor, values_K: torch.Tensor) -> torch.Tensor:
        """The output of `forward`, [out], for one input vector that is `values_K` at `index_K` and 0 elsewhere."""
        output = weighted_rows(self.weight, index_K, values_K)
        return output if self.bias is None else output + self.bias


def row_product(inputs: torch.Tensor, weight_CO: torch.Tensor) -> torch.Tensor:
    """inputs @ weight, [..., O], for inputs [..., C] and a matrix stored a row per input.

    On a processor without AVX-512, torch takes hundreds of times as long for this in bfloat16 as in float32. There a
    single input is a vector product, and several inputs are computed in float32.
    """
    slow = weight_CO.device.type == "cpu" and weight_CO.dtype == torch.bfloat16
    if slow and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        if inputs.numel() == inputs.shape[-1] and not torch.is_grad_enabled():
            return torch.mv(weight_CO.T, inputs.flatten()).view(*inputs.shape[:-1], -1)
        return (inputs.float() @ weight_CO.float()).to(inputs.dtype)
    return inputs @ weight_CO


def weighted_rows(rows_NR: torch.Tensor, index_K: torch.Tensor, coefficients_K: torch.Tensor) -> torch.Tensor:
    """The sum over k of coefficients[k] * rows[index[k]], [R]. Rows that are not picked are not read.

    On a CPU with a compiler this is a native operation (`blocklib/native`), else torch's embedding_bag with one bag per
    thread. It avoids index_select, which copies the rows first and takes several times as long as the whole product.
    """
    if rows_NR.device.type == "cpu" and rows_NR.dtype in (torch.float32, torch.bfloat16) and rows_NR.is_contiguous():
        native = native_operation()
        if native is not None:
            picked: torch.Tensor = native(rows_NR, index_K, coefficients_K)
            return picked
    bags = torch.get_num_threads() if rows_NR.device.type == "cpu" else 1
    each = max(1, -(-len(index_K) // bags))
    starts = torch.arange(0, len(index_K), each, device=index_K.device)
    weights_K = coefficients_K.to(rows_NR.dtype)
    return functional.embedding_bag(index_K, rows_NR, starts, mode="sum", per_sample_weights=weights_K).sum(0)


def native_operation() -> Any:
    """The native operation; None where it cannot be built, or where an exported model runs without this package."""
    try:
        from blocklib.native import operation
    except ImportError:
        return None
    return operation()
