"""The need of timings: stacks of every geometry beside the parent, and later the child beside it. They take the device
for themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cost_models.engines.engines import engine_of
from cost_models.geometry import FIXED, geometries_of
from cost_models.timing.measure import SHARE_OF_MEMORY
from nas.planning.inputs import PlanInputs
from nas.planning.need import Amount, Operations, StageNeed, processes_bytes

_FIRST_STACKS = 5
_CHILD_LIMITS = 3
"""The child is timed for so many times the limit of a stack."""


def measure_need(inputs: PlanInputs) -> StageNeed:
    """The parent's own architecture and a stack beside it, at most as large, with random weights. Both have fewer
    layers where memory asks for it."""
    geometries = [each for each in geometries_of(inputs.choices, inputs.request.space.kv_cache) if each != FIXED]
    return StageNeed(
        "measure",
        each=(*_timed(inputs, _stacks(inputs)), _prefill(inputs)),
        tasks=inputs.tasks(1, alone=True),
        work=Operations(timed_s=(_FIRST_STACKS + len(geometries)) * inputs.request.measure.time_limit),
    )


def time_need(inputs: PlanInputs) -> StageNeed:
    """Parent and child with their own weights, which the engine takes from their files."""
    share = inputs.child_parameters / inputs.parent_parameters
    both = 1.0 + share if _holds_both(inputs) else 1.0
    prefill = _prefill(inputs)
    # While the parent is copied, the child is not there yet; and while they run, no file is mapped.
    waiting = max(inputs.parent_bytes - (both - 1.0) * inputs.served.weight_bytes, inputs.child_bytes)
    mapped = max(0.0, waiting - (prefill.held_bytes if inputs.machine.is_cpu else 0.0))
    return StageNeed(
        "time the child",
        each=(*_timed(inputs, both), prefill),
        main=(Amount("a model, mapped from its files until the engine has it", mapped),),
        tasks=inputs.tasks(1, alone=True),
        work=Operations(timed_s=_CHILD_LIMITS * inputs.request.measure.time_limit),
    )


def _stacks(inputs: PlanInputs) -> float:
    """The weights of the stacks in memory, in multiples of the parent's."""
    if not _holds_both(inputs):
        return 1.0
    machine, weights = inputs.machine, inputs.served.weight_bytes / inputs.scenario.tensor_parallel
    free = machine.device_bytes - (processes_bytes(inputs.places) if machine.is_cpu else 0.0)
    shape = inputs.shape
    one_layer = (shape.fixed_parameters + inputs.layer_parameters) / inputs.parent_parameters
    return 2 * max(one_layer, min(1.0, SHARE_OF_MEMORY * free / weights))


def _timed(inputs: PlanInputs, models: float) -> tuple[Amount, ...]:
    cost, shared = inputs.served, inputs.scenario.tensor_parallel
    return (
        Amount(
            "the models that are timed, as the engine holds them", models * cost.weight_bytes / shared, "scenario.dtype"
        ),
        Amount("their keys and values", models * cost.cache_bytes / shared, "scenario.batch"),
    )


def _prefill(inputs: PlanInputs) -> Amount:
    """One layer's activations of a whole prompt, in the scenario's type, or a copy of the head: torch's products of 16
    bits on a CPU with AMX arrange that matrix anew for the last token of a prompt."""
    scenario, shape = inputs.scenario, inputs.shape
    tokens = scenario.batch * scenario.prompt_tokens
    numbers = tokens * (shape.ffn_matrices * shape.ffn_width + 3 * shape.hidden)
    arranges = inputs.machine.is_cpu and scenario.bytes_per_value == 2 and engine_of(scenario.engine).package == "torch"
    capabilities: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    if arranges and capabilities().get("amx_bf16"):
        numbers = max(numbers, inputs.head_parameters)
    return Amount("activations of a prefill", numbers * scenario.bytes_per_value, "scenario.prompt_tokens")


def _holds_both(inputs: PlanInputs) -> bool:
    """Whether the two models that are timed are in memory together."""
    return engine_of(inputs.scenario.engine).holds_both
