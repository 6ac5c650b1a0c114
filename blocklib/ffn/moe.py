"""`moeExGkK`, `moeExGkKsS`: the parent's neurons, split into E experts of width G. Every token uses the S shared
experts and K of the others, which a router chooses. `sigma_moe...` is the same with the published gates.

Experts are clusters of neurons that are active together, stored as contiguous slices. Shared experts hold the most
active neurons (CMoE, arXiv 2502.04416). A linear router with sigmoid scores chooses (sigma-MoE, arXiv 2310.10837,
section 4). In `moe` the gate of a chosen expert is 1 + u s, where u starts at 0: with all experts chosen, the FFN
equals the parent's. In `sigma_moe` the gate is the score s alone, as published: y = sum of s_e W_2^e act(W_1^e x), not
normalised.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.clusters import balanced_clusters
from blocklib.ffn.dense import hidden_values, norm_weights
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

# The value published for 47 M parameters (appendix A.3). The authors' code suggests the same dropout.
EXPERT_DROPOUT = 0.05
ENTROPY_WEIGHT = 1e-3


class MixtureOfExperts(nn.Module):
    """Experts of one width, some shared by all tokens, the others chosen per token by a router."""

    def __init__(self, config: Any):
        super().__init__()
        sizes = config.ffn_options
        self.experts, self.width = sizes["experts"], sizes["width"]
        self.active, self.shared, self.sigma = sizes["active"], sizes["shared"], sizes["sigma"]
        stack, hidden = (self.experts, self.width), config.hidden_size
        self.router = nn.Linear(hidden, self.experts - self.shared, bias=False)
        if not self.sigma:
            self.gate_scale = nn.Parameter(torch.empty(self.experts - self.shared))
        if config.gated_ffn:
            self.gate_proj = nn.Parameter(torch.empty(*stack, hidden))
        self.up_proj = nn.Parameter(torch.empty(*stack, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.experts, hidden, self.width))
        self.gated, self.has_bias = config.gated_ffn, config.mlp_bias
        if config.mlp_bias:
            if config.gated_ffn:
                self.gate_bias = nn.Parameter(torch.empty(stack))
            self.up_bias = nn.Parameter(torch.empty(stack))
            self.down_bias = nn.Parameter(torch.empty(hidden))
        self.act_fn = ACT2FN[config.hidden_act]
        self.regulariser: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inputs_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        chosen_NK, gates_NK = self.route(inputs_ND)
        if self.shared:
            always = torch.arange(self.shared, device=inputs_ND.device).expand(len(inputs_ND), -1)
            chosen_NK = torch.cat([always, chosen_NK + self.shared], 1)
            gates_NK = torch.cat([gates_NK.new_ones(len(inputs_ND), self.shared), gates_NK], 1)
        if len(inputs_ND) == 1 and not torch.is_grad_enabled():
            output_ND = self.of_one_token(inputs_ND[0], chosen_NK[0].tolist(), gates_NK[0])[None]
        else:
            output_ND = self.of_many_tokens(inputs_ND, chosen_NK, gates_NK)
        if self.has_bias:
            output_ND = output_ND + self.down_bias
        return output_ND.view_as(hidden_states)

    def route(self, inputs_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's chosen experts and their gates, both [N, K]. Experts are numbered from the first that is not
        shared."""
        logits_NE = self.router(inputs_ND)
        scores_NE = logits_NE.sigmoid()
        # The logits order the experts as the scores do, but large scores round to 1.
        wanted_NE = logits_NE.detach()
        self.regulariser = None
        if self.training:
            self.regulariser = ENTROPY_WEIGHT * negative_entropy(logits_NE)
            # A dropped expert comes last. If fewer than K others are left, a token still uses it.
            dropped_NE = torch.rand_like(wanted_NE) < EXPERT_DROPOUT
            wanted_NE = wanted_NE.masked_fill(dropped_NE, torch.finfo(wanted_NE.dtype).min)
        chosen_NK = wanted_NE.topk(self.active, dim=-1).indices
        gates_NK = scores_NE.gather(1, chosen_NK)
        return chosen_NK, gates_NK if self.sigma else 1 + self.gate_scale[chosen_NK] * gates_NK

    def of_one_token(self, input_D: torch.Tensor, chosen: list[int], gates_K: torch.Tensor) -> torch.Tensor:
        """Run the chosen experts one after the other, as matrix-vector products of their slices. The others are not
        read."""
        output_D = torch.zeros_like(input_D)
        for expert, gate in zip(chosen, gates_K, strict=True):
            up_G = torch.mv(self.up_proj[expert], input_D)
            gate_G = torch.mv(self.gate_proj[expert], input_D) if self.gated else up_G
            if self.has_bias:
                up_G = up_G + self.up_bias[expert]
                gate_G = gate_G + self.gate_bias[expert] if self.gated else up_G
            hidden_G = self.act_fn(gate_G) * up_G if self.gated else self.act_fn(up_G)
            output_D = output_D + gate * torch.mv(self.down_proj[expert], hidden_G)
        return output_D

    def of_many_tokens(self, inputs_ND: torch.Tensor, chosen_NK: torch.Tensor, gates_NK: torch.Tensor) -> torch.Tensor:
        """Run the tokens sorted by expert, those of one expert together. Experts that no token chose are not read."""
        expert_P, order_P = chosen_NK.flatten().sort(stable=True)
        token_P = order_P // chosen_NK.shape[1]
        counts_E = torch.bincount(expert_P, minlength=self.experts)
        rows_PD = inputs_ND[token_P]
        up_PG = self.grouped(rows_PD, self.up_proj, counts_E)
        gate_PG = self.grouped(rows_PD, self.gate_proj, counts_E) if self.gated else up_PG
        if self.has_bias:
            up_PG = up_PG + self.up_bias[expert_P]
            gate_PG = gate_PG + self.gate_bias[expert_P] if self.gated else up_PG
        hidden_PG = self.act_fn(gate_PG) * up_PG if self.gated else self.act_fn(up_PG)
        output_PD = self.grouped(hidden_PG, self.down_proj, counts_E) * gates_NK.flatten()[order_P, None]
        return torch.zeros_like(inputs_ND).index_add(0, token_P, output_PD.to(inputs_ND.dtype))

    def grouped(self, rows_PC: torch.Tensor, weight_EOC: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """Each expert's rows, which lie together, times its own matrix: [P, O]."""
        if torch.is_autocast_enabled(rows_PC.device.type):  # which does not look at grouped products
            dtype = torch.get_autocast_dtype(rows_PC.device.type)
            rows_PC, weight_EOC = rows_PC.to(dtype), weight_EOC.to(dtype)
        aligned = all(size * weight_EOC.element_size() % 16 == 0 for size in weight_EOC.shape[1:])
        is_there = hasattr(functional, "grouped_mm")  # Since torch 2.10.
        if is_there and aligned and weight_EOC.dtype in (torch.float32, torch.bfloat16, torch.float16):
            ends_E = counts_E.cumsum(0).to(torch.int32)
            return functional.grouped_mm(rows_PC.contiguous(), weight_EOC.transpose(1, 2), offs=ends_E)
        parts = rows_PC.split(counts_E.tolist())
        return torch.cat([part @ weight_EOC[expert].T for expert, part in enumerate(parts) if len(part)])

    def usage(self, inputs_ND: torch.Tensor) -> torch.Tensor:
        """How many of the tokens choose each expert that is not shared, [E]."""
        chosen_NK, _ = self.route(inputs_ND)
        return torch.bincount(chosen_NK.flatten(), minlength=self.experts - self.shared)


def negative_entropy(logits_NE: torch.Tensor) -> torch.Tensor:
    """sum of p log p, where p is the mean of the softmax over tokens, computed in log space. It is 0 if one expert gets
    all tokens, and at least -log E, if all get the same number (sigma-MoE, section 4.1)."""
    log_p_E = logits_NE.float().log_softmax(-1).logsumexp(0) - math.log(len(logits_NE))
    return (log_p_E.exp() * log_p_E).sum()


class Experts(Kind):
    module = MixtureOfExperts
    is_sparse = True
    needs_whole_batches = True

    def __init__(self, sigma: bool):
        self._sigma = sigma

    def sized(self, subblock: Subblock, shape: Shape) -> Subblock:
        """`moe16k4` has experts that together have the parent's width."""
        numbers = subblock.numbers
        if "x" in numbers or not numbers.get(""):
            return subblock
        width = -(-shape.ffn_width // numbers[""])
        return Subblock(subblock.kind, subblock.size.replace("k", f"x{width}k", 1))

    def check(self, subblock: Subblock, shape: Shape) -> None:
        numbers, spelling = subblock.numbers, f"{subblock.kind}16x{-(-shape.ffn_width // 16)}k4"
        if list(numbers) not in (["", "x", "k"], ["", "x", "k", "s"]):
            raise SubblockError(
                f"{subblock}: write the experts, their width and how many are used, as in {spelling} or {spelling}s2"
            )
        experts, width, active, shared = _sizes(subblock)
        if width < 1 or experts * width < shape.ffn_width:
            raise SubblockError(
                f"{subblock}: {experts} experts of width {width} do not hold the parent's {shape.ffn_width} neurons; "
                f"give each {-(-shape.ffn_width // max(1, experts))}"
            )
        if active < 1 or active + shared > experts:
            raise SubblockError(
                f"{subblock}: a token cannot use {active} + {shared} of {experts} experts; choose 1 or more, and "
                f"at most {experts} with the shared ones"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        experts, width, active, shared = _sizes(subblock)
        sizes = {"experts": experts, "width": width, "active": active, "shared": shared, "sigma": self._sigma}
        return {"ffn_kind": subblock.kind, "ffn_options": sizes}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        experts, _, _, shared = _sizes(subblock)
        return self._router(experts - shared, shape) + experts * self._expert(subblock, shape) + self._rest(shape)

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        experts, _, active, shared = _sizes(subblock)
        routed = experts - shared
        used = shared + routed * (1 - (1 - active / routed) ** tokens)
        return self._router(routed, shape) + used * self._expert(subblock, shape) + self._rest(shape)

    def _router(self, routed: int, shape: Shape) -> int:
        return routed * (shape.hidden + (not self._sigma))

    def _expert(self, subblock: Subblock, shape: Shape) -> int:
        _, width, _, _ = _sizes(subblock)
        return width * (shape.ffn_matrices * shape.hidden + shape.mlp_bias * (shape.ffn_matrices - 1))

    def _rest(self, shape: Shape) -> int:
        return shape.mlp_bias * shape.hidden + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        experts, width, active, shared = _sizes(subblock)
        hidden_NF = hidden_values(layer.weights, layer.ffn_input_ND, shape)
        activity_NF = hidden_NF.abs() * layer.weights["mlp.down_proj.weight"].norm(dim=0)
        order_F = _parted(functional.pad(activity_NF, (0, experts * width - shape.ffn_width)), width, shared)
        weights = norm_weights(layer)
        for name in ("gate_proj", "up_proj", "down_proj"):
            if f"mlp.{name}.weight" in layer.weights:
                weights |= _experts_of(layer, name, order_F, (experts, width))
        done_NE = _padded(activity_NF, order_F).unflatten(1, (experts, width)).sum(-1)[:, shared:]
        router_ED = fit_router(layer.ffn_input_ND, done_NE, active)
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        weights["mlp.router.weight"] = router_ED.to(dtype)
        if self._sigma:
            scores_NE = (layer.ffn_input_ND.float() @ router_ED.T).sigmoid()
            # The mean gate of the chosen experts, so that they contribute about as much as the parent's neurons did.
            gate = float(scores_NE.topk(active, dim=1).values.mean())
            scale_E11 = torch.ones(experts, 1, 1, device=router_ED.device)
            scale_E11[shared:] /= gate
            weights["mlp.down_proj"] = (weights["mlp.down_proj"].float() * scale_E11).to(dtype)
        else:
            weights["mlp.gate_scale"] = torch.zeros(experts - shared, dtype=dtype, device=router_ED.device)
        return weights


def _sizes(subblock: Subblock) -> tuple[int, int, int, int]:
    """The number of experts, their width, how many a token chooses and how many are shared."""
    numbers = subblock.numbers
    return numbers[""], numbers["x"], numbers["k"], numbers.get("s", 0)


def _parted(activity_NF: Tensor, width: int, shared: int) -> Tensor:
    """The neurons in the order of their experts, [F]: the most active ones shared, the others in clusters."""
    most_F = activity_NF.mean(0).argsort(descending=True, stable=True)
    common, rest = most_F[: shared * width], most_F[shared * width :].sort().values
    clusters = len(rest) // width
    return torch.cat([common, rest[balanced_clusters(activity_NF[:, rest], clusters).to(rest.device)]])


def _padded(values_NF: Tensor, order_F: Tensor) -> Tensor:
    """Columns in a new order. An index past the last column gives zeros."""
    return functional.pad(values_NF, (0, len(order_F) - values_NF.shape[1]))[:, order_F]


def _experts_of(layer: ParentLayer, name: str, order_F: Tensor, stack: tuple[int, int]) -> dict[str, Tensor]:
    """The slices of one projection, and their biases. Neurons that the parent does not have are zeros."""
    weight, bias = layer.weights[f"mlp.{name}.weight"], layer.weights.get(f"mlp.{name}.bias")
    if name == "down_proj":
        sliced = _padded(weight, order_F).unflatten(1, stack).transpose(0, 1).contiguous()
        found = {"mlp.down_proj": sliced}
        return found if bias is None else found | {"mlp.down_bias": bias}
    found = {f"mlp.{name}": _padded(weight.T, order_F).T.unflatten(0, stack).contiguous()}
    if bias is not None:
        found[f"mlp.{name.removesuffix('_proj')}_bias"] = _padded(bias[None], order_F)[0].unflatten(0, stack)
    return found


def fit_router(input_ND: Tensor, done_NE: Tensor, active: int) -> Tensor:
    """A linear router, [E, D], that finds the most active experts for a token: ridge regression, in closed form.
    `done_NE` is the activity of each expert for each token. The target is 1 for the `active` best and -1 for the
    others.
    """
    target_NE = -torch.ones_like(done_NE, dtype=torch.float64)
    target_NE.scatter_(1, done_NE.topk(active, dim=1).indices, 1.0)
    inputs_ND = input_ND.double()
    gram_DD = inputs_ND.T @ inputs_ND
    ridge_D = 1e-2 * gram_DD.diagonal().mean().clamp_min(1e-30) * torch.ones_like(gram_DD[0])
    router_DE: Tensor = torch.linalg.solve(gram_DD + ridge_D.diag(), inputs_ND.T @ target_NE)
    return router_DE.T.float()
