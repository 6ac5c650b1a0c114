"""The need of timings: stacks of every geometry beside the parent, and later the child beside it. They take the device
for themselves."""

from cost_models.engines.engines import engine_of
from cost_models.geometry import FIXED, geometries_of
from nas.planning.inputs import FLOAT32, PlanInputs
from nas.planning.need import Amount, Operations, StageNeed

_FIRST_STACKS = 5
_CHILD_LIMITS = 3
"""The child is timed for so many times the limit of a stack."""


def measure_need(inputs: PlanInputs) -> StageNeed:
    """The parent's own architecture and a stack beside it, at most as large, with random weights."""
    geometries = [each for each in geometries_of(inputs.choices, inputs.request.space.kv_cache) if each != FIXED]
    return StageNeed(
        "measure",
        each=(*_timed(inputs, 2.0 if _holds_both(inputs) else 1.0), _prefill(inputs)),
        tasks=inputs.tasks(1, alone=True),
        work=Operations(timed_s=(_FIRST_STACKS + len(geometries)) * inputs.request.measure.time_limit),
    )


def time_need(inputs: PlanInputs) -> StageNeed:
    """Parent and child with their own weights. Main memory holds each in float32 until the engine has it."""
    share = inputs.child_parameters / inputs.parent_parameters
    both = 1.0 + share if _holds_both(inputs) else 1.0
    # The engine gets the parent first, and on a CPU holds it while the child waits.
    largest = inputs.child_parameters if inputs.machine.is_cpu else inputs.parent_parameters
    waiting = Amount("a model in float32, until the engine has it", largest * FLOAT32)
    return StageNeed(
        "time the child",
        each=(*_timed(inputs, both), _prefill(inputs)),
        main=(waiting, Amount("the parent, as it is stored", inputs.parent_bytes)),
        tasks=inputs.tasks(1, alone=True),
        work=Operations(timed_s=_CHILD_LIMITS * inputs.request.measure.time_limit),
    )


def _timed(inputs: PlanInputs, models: float) -> tuple[Amount, ...]:
    cost, shared = inputs.served, inputs.scenario.tensor_parallel
    return (
        Amount(
            "the models that are timed, as the engine holds them", models * cost.weight_bytes / shared, "scenario.dtype"
        ),
        Amount("their keys and values", models * cost.cache_bytes / shared, "scenario.batch"),
    )


def _prefill(inputs: PlanInputs) -> Amount:
    """One layer's activations of a whole prompt, in the scenario's type."""
    scenario, shape = inputs.scenario, inputs.shape
    tokens = scenario.batch * scenario.prompt_tokens
    numbers = tokens * (shape.ffn_matrices * shape.ffn_width + 3 * shape.hidden)
    return Amount("activations of a prefill", numbers * scenario.bytes_per_value, "scenario.prompt_tokens")


def _holds_both(inputs: PlanInputs) -> bool:
    """Whether the two models that are timed are in memory together."""
    return engine_of(inputs.scenario.engine).holds_both
