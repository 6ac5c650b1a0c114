"""A kind of FFN of your own: `low_rankN`, two linear maps with N values between them. See docs/adding/kind.md.

    python examples/adding/a_kind.py

The script adds the kind to the tables of its own process. Then it builds the kind for every layer of the embedded
parent, scores it, and lets the exact solver choose: the parent's FFN, the new kind, or none.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from blocklib.activations import cached
from blocklib.block import Choice, Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import norm_weights
from blocklib.initial_weights import build
from blocklib.kind import Kind, ParentLayer
from blocklib.kinds import FFN, FFN_MODULES, choice_parameters
from blocklib.parent import Parent, load_parent
from blocklib.shape import Shape
from nas.job.request import checkpoint_of
from nas.scoring.replace_one import score
from solvers.exact.solver import solve
from solvers.problem import Option, Problem, Solution


class LowRankFFN(nn.Module):
    """Two linear maps, one after the other."""

    def __init__(self, config: Any):
        super().__init__()
        rank = config.ffn_options["rank"]
        self.down_map = nn.Linear(config.hidden_size, rank, bias=False)
        self.up_map = nn.Linear(rank, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.up_map(self.down_map(hidden_states))
        return output


class LowRank(Kind):
    output_projection = "mlp.up_map"  # least squares solves for it
    module = LowRankFFN

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if not 1 <= subblock.number <= shape.hidden:
            raise SubblockError(
                f"{subblock}: the rank is at most the hidden size; use low_rank1 to low_rank{shape.hidden}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"ffn_kind": "low_rank", "ffn_options": {"rank": subblock.number}}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.hidden * (2 * subblock.number + shape.mlp_bias) + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        own = {name: tensor.float() for name, tensor in layer.weights.items()}
        left_DR, sizes_R, right_RD = torch.linalg.svd(own["mlp.down_proj.weight"] @ own["mlp.up_proj.weight"])
        weights = norm_weights(layer)
        weights["mlp.down_map.weight"] = right_RD[: subblock.number].contiguous()
        weights["mlp.up_map.weight"] = left_DR[:, : subblock.number] * sizes_R[: subblock.number]
        if shape.mlp_bias:
            bias_D = own["mlp.down_proj.weight"] @ own["mlp.up_proj.bias"] + own["mlp.down_proj.bias"]
            weights["mlp.up_map.bias"] = bias_D
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in weights.items()}


FFN["low_rank"] = LowRank()
FFN_MODULES["low_rank"] = LowRankFFN


def solved(parent: Parent, ids_BT: Tensor, options: Sequence[str], share: float) -> Solution:
    """The best FFN for every layer among the parent's own and `options`, with `share` of the FFNs' parameters.

    The scores are the KL to the parent on `ids_BT`, [sequences, tokens].
    """
    shape, own = parent.shape, Subblock.parse(f"ffn{parent.shape.ffn_width}")
    asked = [Choice(layer, "ffn", Subblock.parse(text)) for layer in range(shape.layers) for text in options]
    weights: dict[Choice, dict[str, Tensor]] = {choice: {} for choice in asked}  # `skip` has none
    held = [choice for choice in asked if choice_parameters(choice, shape)]
    activations = cached(parent.model, ids_BT, batch=4)
    weights |= {built.choice: built.fitted for built in build(parent, held, activations, batch=4, fit=True)}
    *_, scores = score(parent, weights, activations)
    kls = {Choice(layer, "ffn", own): 0.0 for layer in range(shape.layers)}
    kls |= {choice: scores[choice].kl for choice in asked}
    parameters = {choice: choice_parameters(choice, shape) for choice in kls}
    slots = [
        Option(choice.layer, 1, str(choice.what), kl, {"parameters": parameters[choice]}) for choice, kl in kls.items()
    ]
    most = share * shape.layers * parameters[Choice(0, "ffn", own)]
    return solve(Problem(shape.layers, tuple(slots), {"parameters": most}))


def main() -> None:
    folder = checkpoint_of("embedded")
    parent = load_parent(folder)
    text = inspect.getsource(inspect)
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"][: 16 * 64])
    solution = solved(parent, ids.view(16, 64), ("low_rank96", "skip"), share=0.6)
    print(*(option.name for option in solution.options))
    print(f"sum of scores {solution.score:.4f}, {solution.status}")


if __name__ == "__main__":
    main()
