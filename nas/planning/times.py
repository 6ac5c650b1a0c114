"""What timings need: stacks of every geometry beside the parent, and later the child beside it. They take the device
for themselves."""

from blocklib.kinds import parent_architecture
from cost_models.analytic import architecture_cost
from cost_models.cost import Cost
from cost_models.geometry import FIXED, geometries_of
from nas.planning.need import Held, Need
from nas.planning.setting import FLOAT32, Setting

_FIRST_STACKS = 5
_CHILD_LIMITS = 3
"""The child is timed for so many times the limit of a stack."""


def measure_need(setting: Setting) -> Need:
    """The parent's own architecture and a stack beside it, at most as large, with random weights."""
    geometries = [each for each in geometries_of(setting.choices, setting.request.space.kv_cache) if each != FIXED]
    return Need(
        "measure",
        each=(*_timed(setting, 2.0 if _holds_both(setting) else 1.0), _prefill(setting)),
        workers=setting.places,
        timed_s=(_FIRST_STACKS + len(geometries)) * setting.request.measure.time_limit,
    )


def time_need(setting: Setting) -> Need:
    """Parent and child with their own weights. Main memory holds each in float32 until the engine has it."""
    share = setting.child_parameters / setting.parent_parameters
    both = 1.0 + share if _holds_both(setting) else 1.0
    waiting = Held("the child in float32, until the engine has it", setting.child_parameters * FLOAT32, "budget")
    return Need(
        "time the child",
        each=(*_timed(setting, both), _prefill(setting)),
        main=(waiting, Held("the parent, as it is stored", setting.parent_bytes)),
        workers=setting.places,
        timed_s=_CHILD_LIMITS * setting.request.measure.time_limit,
    )


def _timed(setting: Setting, models: float) -> tuple[Held, ...]:
    cost, shared = _cost(setting), setting.scenario.tensor_parallel
    return (
        Held("the models that are timed, as the engine holds them", models * cost.weight_bytes / shared,
             "scenario.dtype"),
        Held("their keys and values", models * cost.cache_bytes / shared, "scenario.batch"),
    )


def _prefill(setting: Setting) -> Held:
    """One layer's activations of a whole prompt, in the scenario's type."""
    scenario, shape = setting.scenario, setting.shape
    tokens = scenario.batch * scenario.prompt_tokens
    numbers = tokens * (shape.ffn_matrices * shape.ffn_width + 3 * shape.hidden)
    return Held("activations of a prefill", numbers * scenario.bytes_per_value, "scenario.prompt_tokens")


def _cost(setting: Setting) -> Cost:
    return architecture_cost(parent_architecture(setting.shape), setting.shape, setting.scenario)


def _holds_both(setting: Setting) -> bool:
    """Whether the two models that are timed are in memory together."""
    return setting.scenario.engine.startswith("torch")
