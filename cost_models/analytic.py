"""Costs by arithmetic: parameters, bytes of weights and cache, and the weights a pass reads. Knows no times.

Exact, to the byte; but what a pass over several tokens reads of a sparse subblock depends on what they choose: that is
an expectation, as if each chose for itself.
"""

from blocklib.block import Architecture, Choice
from blocklib.formats.gguf import gguf_bytes, gguf_embedding_bytes, gguf_fixed_bytes, gguf_head_bytes
from blocklib.kinds import choice_kv_values, choice_parameters, choice_touched, mean_kv_values
from blocklib.shape import Shape
from cost_models.cost import ZERO, Cost
from cost_models.scenario import Scenario


def choice_cost(choice: Choice, shape: Shape, scenario: Scenario) -> Cost:
    """The bytes that `choice` holds and reads in a child of a parent of this shape, its norms included."""
    return _cost(choice, shape, scenario, choice_kv_values(choice, shape, scenario.context_tokens))


def mean_cost(choice: Choice, shape: Shape, scenario: Scenario) -> Cost:
    """The same of what may stand in any layer: its cache is the mean over the parent's layers, where some of them see a
    window of tokens only."""
    return _cost(choice, shape, scenario, mean_kv_values(choice, shape, scenario.context_tokens))


def _cost(choice: Choice, shape: Shape, scenario: Scenario, kv_values: int) -> Cost:
    if choice.is_table:
        return table_cost(choice, shape, scenario)
    parameters, held = choice_parameters(choice, shape), stored_bytes(choice, shape, scenario)
    size = held / parameters if parameters else 0.0
    prompts = scenario.batch * scenario.prompt_tokens
    return Cost(
        parameters=parameters,
        active_parameters=round(choice_touched(choice, shape, 1)),
        weight_bytes=held,
        prefill_bytes=round(choice_touched(choice, shape, prompts) * size),
        decode_bytes=round(choice_touched(choice, shape, scenario.batch) * size),
        cache_bytes=scenario.cache_bytes(kv_values * scenario.batch),
    )


def stored_bytes(choice: Choice, shape: Shape, scenario: Scenario) -> int:
    """The bytes of its weights in the form that the scenario's engine loads."""
    if scenario.engine == "llama_cpp":
        return gguf_bytes(choice, shape, scenario.dtype)
    return choice_parameters(choice, shape) * scenario.bytes_per_value


def fixed_cost(shape: Shape, scenario: Scenario, precision: str = "") -> Cost:
    """The part that every child holds: embeddings, final norm and head. A tied head is the embedding, counted once.
    `precision` is that of the tables; "": as the scenario says.

    A pass reads one row of the embeddings per token, which is left out; it reads all rows of a tied one, as the head.
    """
    parameters = shape.fixed_parameters
    read = shape.vocabulary * shape.hidden + shape.norm_parameters
    if scenario.engine == "llama_cpp":
        stored = (shape, precision or scenario.dtype, bool(precision))
        held, read_bytes = gguf_fixed_bytes(*stored), gguf_head_bytes(*stored)
    else:
        held, read_bytes = (count * scenario.bytes_per_value for count in (parameters, read))
    return Cost(
        parameters=parameters,
        active_parameters=read,
        weight_bytes=held,
        prefill_bytes=read_bytes,
        decode_bytes=read_bytes,
    )


def table_cost(choice: Choice, shape: Shape, scenario: Scenario) -> Cost:
    """Tables that have a precision: the head with the final norm, the embedding, which no pass reads, or both."""
    if choice.role == "tables":
        return fixed_cost(shape, scenario, choice.precision)
    is_head = choice.role == "head"
    held = (gguf_head_bytes(shape, choice.precision, is_chosen=True) if is_head
            else gguf_embedding_bytes(shape, choice.precision))  # fmt: skip
    read = held if is_head else 0
    return Cost(
        parameters=choice_parameters(choice, shape),
        active_parameters=round(choice_touched(choice, shape, 1)),
        weight_bytes=held,
        prefill_bytes=read,
        decode_bytes=read,
    )


def architecture_cost(architecture: Architecture, shape: Shape, scenario: Scenario) -> Cost:
    """The bytes that a whole child holds and reads, keys and values in the type that the architecture says."""
    scenario = scenario.keeping(architecture.cache)
    fixed = ZERO if architecture.tables else fixed_cost(shape, scenario)
    return sum((choice_cost(choice, shape, scenario) for choice in architecture.choices()), fixed)
