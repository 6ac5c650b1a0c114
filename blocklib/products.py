"""Matrix products of a model's passes: in float32, in TF32, or in bfloat16 with float32 around them.

Attention, FFNs and the head multiply in the type that is asked for; autocast converts what they read, and they give
float32. The residual, norms, softmax and losses, gradients of weights and their optimiser, normal equations: all that
is not inside one of these modules stays in float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from blocklib.errors import SettingError

Products = Literal["float32", "tf32", "bfloat16"]
Model = TypeVar("Model", bound=nn.Module)

_MULTIPLY = ("self_attn", "mlp", "lm_head")
"""The modules of a model, or of a layer, whose products are meant."""
_LEAST_CAPABILITY = (8, 0)
"""NVIDIA's Ampere, the first with TF32."""


def check_products(products: Products, device: torch.device) -> None:
    """Raise SettingError where the device does not have the type: without TF32, torch would say nothing and multiply in
    float32."""
    if products != "tf32":
        return
    is_nvidias = device.type == "cuda" and torch.version.cuda is not None
    if not is_nvidias or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        raise SettingError(
            f"compute.precision: {device.type} here has no tf32, which NVIDIA's GPUs have since Ampere; give float32 "
            "or bfloat16"
        )


def multiply_in(products: Products, model: Model) -> Model:
    """A model or a layer that multiplied in float32 so far: in every later pass it multiplies in this type. Raises as
    `check_products`."""
    if products == "float32":
        return model
    if (parameter := next(model.parameters(), None)) is not None:
        check_products(products, parameter.device)
    model.products = products  # type: ignore[assignment]
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _MULTIPLY:
            module.products = products
            around = _Multiplying(products)
            module.register_forward_pre_hook(around.enter)
            module.register_forward_hook(around.leave, always_call=True)
    return model


def products_of(model: nn.Module) -> Products:
    """The type that a model multiplies in, or one of its modules that do."""
    found: Products = getattr(model, "products", "float32")
    return found


def matrix_type(products: Products, dtype: torch.dtype) -> torch.dtype:
    """The type in which a model that computes in `dtype` reads its matrices; norms and biases, which are vectors, it
    reads in `dtype`."""
    return torch.bfloat16 if products == "bfloat16" else dtype


def gradients_of(products: Products) -> AbstractContextManager[None]:
    """For the backward pass of a model that multiplies so. Autocast's products keep their type by themselves."""
    return _tf32() if products == "tf32" else nullcontext()


class _Multiplying:
    """The products of one module in another type, while it runs."""

    def __init__(self, products: Products):
        self._products = products
        self._entered: list[AbstractContextManager[Any]] = []

    def enter(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kind = inputs[0].device.type
        entered = _tf32() if self._products == "tf32" else torch.autocast(kind, torch.bfloat16)
        entered.__enter__()
        self._entered.append(entered)

    def leave(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        """It is called where the module raised, too, without an output."""
        self._entered.pop().__exit__(None, None, None)
        return None if output is None else output.to(inputs[0].dtype)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
