"""What arithmetic gives: parameters, and bytes of weights and cache. Exact, to the byte. Knows no times."""

from blocklib.block import Architecture, Choice
from blocklib.kinds import choice_kv_values_per_token, choice_parameters
from blocklib.shape import Shape
from cost_models.cost import Cost
from cost_models.scenario import bytes_per_value


def choice_cost(choice: Choice, shape: Shape, dtype: str) -> Cost:
    """What `choice` holds in a child of a parent of this shape, its norms included."""
    parameters = choice_parameters(choice, shape)
    size = bytes_per_value(dtype)
    kv_bytes = choice_kv_values_per_token(choice, shape) * size
    return Cost(parameters=parameters, weight_bytes=parameters * size, kv_bytes_per_token=kv_bytes)


def fixed_cost(shape: Shape, dtype: str) -> Cost:
    """What every child holds: embedding, final norm and head. A tied head is the embedding, counted once."""
    parameters = shape.fixed_parameters
    return Cost(parameters=parameters, weight_bytes=parameters * bytes_per_value(dtype))


def architecture_cost(architecture: Architecture, shape: Shape, dtype: str) -> Cost:
    """What a whole child holds."""
    return sum((choice_cost(choice, shape, dtype) for choice in architecture.choices()), fixed_cost(shape, dtype))
