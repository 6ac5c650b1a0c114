"""Costs on a machine whose DRAM does not hold the model: a model of the memory hierarchy replaces the clock.

Each FFN has an equal share of the DRAM that the parent's other parts leave (`cost_models/flash/flash.py`). A dense FFN
streams what its share does not hold. For a `dip` FFN the parent's own activations run through the cache-aware choice
and the cache, token by token; its cost is the mean over the layers. For the other sparse kinds the cached part of a
token's reads is the part of the weights that the share holds. Batches of one.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from blocklib.activations import cached
from blocklib.block import Choice, Role, Subblock
from blocklib.ffn.dip import PrunedFFN
from blocklib.initial_weights import build
from blocklib.kinds import kind_of, mean_kv_values, parent_block
from blocklib.parent import Parent
from blocklib.stream import inputs_of, variant
from cost_models.analytic import fixed_cost, mean_cost
from cost_models.cost import Cost
from cost_models.flash.flash import (
    Hook,
    MemoryHierarchy,
    Static,
    Traffic,
    block_seconds,
    ffn_share_bytes,
    slots,
    streamed_bytes,
)
from cost_models.flash.masking import Selection, play
from cost_models.geometry import FIXED, Geometry
from cost_models.scenario import Scenario
from cost_models.timing.measured_geometry import MeasuredGeometry

# The number of simulated sequences and their tokens. A cache is in a steady state after some tens of tokens.
_SEQUENCES, _TOKENS = 2, 128


def simulate(
    parent: Parent, geometries: Iterable[Geometry], scenario: Scenario, hierarchy: MemoryHierarchy, ids_BT: Tensor
) -> Iterator[MeasuredGeometry]:
    """The fixed part and every geometry asked for, as `measure` gives them, without spread.

    `ids_BT` is calibration text, [sequences, tokens]. Raises ScenarioError where the KV cache alone does not fit.
    """
    machine = _Machine(parent, scenario, hierarchy)
    yield MeasuredGeometry(FIXED, 0.0, 0, parent.shape.layers, *machine.fixed())
    for geometry in geometries:
        if geometry.role == "attention":
            seconds = machine.attention(geometry.subblock)
        elif geometry.subblock.kind == "dip":
            seconds = machine.pruned(geometry.subblock, ids_BT[:_SEQUENCES, :_TOKENS])
        else:
            seconds = machine.ffn(geometry.subblock)
        yield MeasuredGeometry(geometry, 0.0, 0, parent.shape.layers, *seconds)


class _Machine:
    """One parent on one hierarchy. Each method gives the seconds of a prefill and of a decode step."""

    def __init__(self, parent: Parent, scenario: Scenario, hierarchy: MemoryHierarchy):
        self._parent, self._scenario, self._hierarchy = parent, scenario, hierarchy
        shape = parent.shape
        attention = self._held("attention", parent_block(shape).attention)
        self._fixed = fixed_cost(shape, scenario)
        static = Static(
            weight_bytes=self._fixed.decode_bytes + shape.layers * attention.weight_bytes,
            idle_bytes=self._fixed.weight_bytes - self._fixed.decode_bytes,
            cache_bytes=shape.layers * attention.cache_bytes,
        )
        self._streamed_share = streamed_bytes(hierarchy, static) / static.weight_bytes
        self._share_bytes = ffn_share_bytes(hierarchy, static, shape.layers)

    def fixed(self) -> tuple[float, float]:
        seconds = self._static(self._fixed.decode_bytes, 0)
        return seconds, seconds

    def attention(self, subblock: Subblock) -> tuple[float, float]:
        shape, scenario = self._parent.shape, self._scenario
        choice = Choice(0, "attention", subblock)
        weights = self._held("attention", subblock).weight_bytes
        middle = (scenario.prompt_tokens + scenario.context_tokens) // 2
        values = (mean_kv_values(choice, shape, tokens) for tokens in (scenario.prompt_tokens, middle))
        prompt, read = map(scenario.cache_bytes, values)
        return self._static(weights, prompt), self._static(weights, read)

    def ffn(self, subblock: Subblock) -> tuple[float, float]:
        held = self._held("ffn", subblock)
        # One that stands for several has as many shares.
        shares = max(1, -(-subblock.number // self._parent.shape.ffn_width)) if subblock.kind == "ffn" else 1
        share_bytes = shares * self._share_bytes
        if not kind_of("ffn", subblock).is_sparse:
            seconds = block_seconds(self._hierarchy, share_bytes, held.weight_bytes)
            return seconds, seconds
        resident = min(1.0, share_bytes / held.weight_bytes)
        prefill, decode = (
            self._hierarchy.seconds(read * resident, read * (1 - resident))
            for read in (held.prefill_bytes, held.decode_bytes)
        )
        return prefill, decode

    @torch.no_grad()
    def pruned(self, subblock: Subblock, ids_BT: Tensor) -> tuple[float, float]:
        parent, shape, size = self._parent, self._parent.shape, self._scenario.bytes_per_value
        held = self._held("ffn", subblock)
        linears = shape.ffn_matrices - 1
        hooks = (Hook(shape.hidden, shape.ffn_width * size, linears), Hook(shape.ffn_width, shape.hidden * size))
        units_bytes = sum(hook.units * hook.unit_bytes * hook.linears for hook in hooks)
        always_bytes = held.weight_bytes - units_bytes
        capacities = slots(self._share_bytes, hooks, always_bytes)
        choices = [Choice(layer, "ffn", subblock) for layer in range(shape.layers)]
        total = 0.0
        for unit in build(parent, choices, cached(parent.model, ids_BT, 1), batch=1, fit=False):
            module = variant(parent.model, unit.choice, unit.first).get_submodule("mlp")
            assert isinstance(module, PrunedFFN)
            with inputs_of(parent.model.model.layers[unit.choice.layer].mlp) as seen:
                parent.model.model(ids_BT.long())
            sequences = [self._traffic(module, each_TD, hooks, capacities) for each_TD in seen[0]]
            total += block_seconds(self._hierarchy, self._share_bytes, always_bytes, sequences)
        return self._hierarchy.seconds(always_bytes, units_bytes), total / shape.layers

    def _traffic(
        self, module: PrunedFFN, inputs_TD: Tensor, hooks: Sequence[Hook], capacities: Sequence[int]
    ) -> tuple[Traffic, Traffic]:
        """The requests of one sequence for input channels and hidden ones; the cache takes part in each choice."""
        gamma, policy = self._hierarchy.gamma, self._hierarchy.policy
        inputs = play(inputs_TD.cpu(), Selection(module.kept_inputs, gamma), policy, capacities[0])
        kept_TD = inputs_TD * torch.from_numpy(inputs.masks_TN).to(inputs_TD)
        hidden_TF = module.activated(module.in_proj(kept_TD))
        hidden = play(hidden_TF.cpu(), Selection(module.kept_hidden, gamma), policy, capacities[1])
        return (
            Traffic(hooks[0], inputs.hits_T, inputs.misses_T),
            Traffic(hooks[1], hidden.hits_T, hidden.misses_T),
        )

    def _held(self, role: Role, subblock: Subblock) -> Cost:
        return mean_cost(Choice(0, role, subblock), self._parent.shape, self._scenario)

    def _static(self, weight_bytes: float, cache_bytes: float) -> float:
        streamed = self._streamed_share * weight_bytes
        return self._hierarchy.seconds(weight_bytes - streamed + cache_bytes, streamed)
