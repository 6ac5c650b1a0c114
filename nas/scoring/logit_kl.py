"""KL between two models' next-token distributions, from hidden states and heads, with a gradient.

Logits are long: a vocabulary for every token, and a training step that holds both models' with all that softmax and its
gradient keep beside them takes gigabytes. Here a few rows' logits exist at a time, and with each of them their share of
the gradient is made. Knows no trainer.
"""

from typing import Any

import torch
from torch import Tensor

from blocklib.products import matrix_type, products_of
from blocklib.tables import LogitHead
from nas.scoring.fidelity import cached_rows, logit_rows


def logit_kl(model_BTD: Tensor, parent_BTD: Tensor, head: LogitHead, parent_head: LogitHead) -> Tensor:
    """KL(parent || model) in nats, the mean over all tokens, in float32: a scalar.

    Hidden states are the final, normed ones; heads multiply as they do elsewhere (`blocklib/products.py`). Only
    `model_BTD` gets a gradient: the heads are not trained. Raises ValueError where the model's head asks for one.
    """
    if head.weight.requires_grad:
        raise ValueError("the head is to be trained, and the KL by rows has no gradient for it: freeze it")
    return _LogitKL.apply(  # type: ignore[no-any-return, no-untyped-call]
        model_BTD.flatten(0, 1), parent_BTD.detach().flatten(0, 1), head, parent_head
    )


class _LogitKL(torch.autograd.Function):
    """The gradient of the mean is made with the mean: a backward pass would have to make all logits again."""

    @staticmethod
    def forward(ctx: Any, model_RD: Tensor, parent_RD: Tensor, head: LogitHead, parent_head: LogitHead) -> Tensor:
        count = len(model_RD)
        head_VD = head.weight.to(matrix_type(products_of(head), head.weight.dtype))
        rows = logit_rows(model_RD.device, head.out_features)
        gradient_RD = torch.empty_like(model_RD) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=model_RD.device)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            parent_RV, model_RV = parent_head(parent_RD[part]).float(), head(model_RD[part]).float()
            for few in cached_rows(model_RV):
                parent_log_RV, log_RV = parent_RV[few].log_softmax(-1), model_RV[few].log_softmax(-1)
                chance_RV = parent_log_RV.exp()
                total += (chance_RV * parent_log_RV.sub_(log_RV)).sum()
                # The derivative of the KL by the model's logits, in their place.
                torch.sub(log_RV.exp_(), chance_RV, out=model_RV[few]).div_(count)
            if gradient_RD is not None:
                gradient_RD[part] = model_RV.to(head_VD.dtype) @ head_VD / head.divisor
        if gradient_RD is not None:
            ctx.save_for_backward(gradient_RD)
        return total / count

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_RD,) = ctx.saved_tensors
        return by_loss * gradient_RD, None, None, None
