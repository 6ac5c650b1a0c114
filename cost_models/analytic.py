"""Costs by arithmetic: parameters, bytes of weights and cache, and the weights a pass reads. Knows no times.

Exact, to the byte; but what a pass over several tokens reads of a sparse subblock depends on what they choose: that is
an expectation, as if each chose for itself.
"""

from blocklib.block import Architecture, Choice
from blocklib.kinds import choice_kv_values, choice_parameters, choice_touched
from blocklib.shape import Shape
from cost_models.cost import Cost
from cost_models.scenario import Scenario, bytes_per_value


def choice_cost(choice: Choice, shape: Shape, scenario: Scenario) -> Cost:
    """The bytes that `choice` holds and reads in a child of a parent of this shape, its norms included."""
    size = bytes_per_value(scenario.dtype)
    parameters = choice_parameters(choice, shape)
    prompts = scenario.batch * scenario.prompt_tokens
    return Cost(
        parameters=parameters,
        active_parameters=round(choice_touched(choice, shape, 1)),
        weight_bytes=parameters * size,
        prefill_bytes=round(choice_touched(choice, shape, prompts) * size),
        decode_bytes=round(choice_touched(choice, shape, scenario.batch) * size),
        cache_bytes=choice_kv_values(choice, shape, scenario.context_tokens) * scenario.batch * size,
    )


def fixed_cost(shape: Shape, scenario: Scenario) -> Cost:
    """The part that every child holds: embeddings, final norm and head. A tied head is the embedding, counted once.

    A pass reads one row of the embeddings per token, which is left out; it reads all rows of a tied one, as the head.
    """
    parameters, size = shape.fixed_parameters, bytes_per_value(scenario.dtype)
    read = shape.vocabulary * shape.hidden + shape.norm_parameters
    return Cost(
        parameters=parameters,
        active_parameters=read,
        weight_bytes=parameters * size,
        prefill_bytes=read * size,
        decode_bytes=read * size,
    )


def architecture_cost(architecture: Architecture, shape: Shape, scenario: Scenario) -> Cost:
    """The bytes that a whole child holds and reads."""
    return sum((choice_cost(choice, shape, scenario) for choice in architecture.choices()), fixed_cost(shape, scenario))
