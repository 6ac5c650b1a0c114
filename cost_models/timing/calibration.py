"""Costs of parts, corrected by whole architectures that were timed. Pure arithmetic.

A part's time comes from a stack of itself alone. In a mixed architecture it may take a little more or less. Each part
is one measured whole, known to within `TRUST`, and the whole architectures are further ones; non-negative least squares
finds the parts that fit both (`least_squares.py`).
"""

from collections.abc import Mapping, Sequence

from cost_models.timing.least_squares import Whole, attribute

TRUST = 0.1
"""How far, as a share, a part in a mixed architecture may be from the same part in a stack of itself."""


def calibrated(parts: Mapping[str, float], wholes: Sequence[Whole]) -> dict[str, float]:
    """The amount of each part, corrected. `wholes` count these parts only. A part of amount 0 stays at 0.

    Raises ValueError where a whole counts a part that is not among them.
    """
    unknown = sorted({name for whole in wholes for name in whole.counts} - parts.keys())
    if unknown:
        raise ValueError(f"no amount is known of {', '.join(unknown)}")
    held = {name: amount for name, amount in parts.items() if amount > 0}
    stacks = [Whole({name: 1.0}, amount, TRUST) for name, amount in held.items()]
    mixed = [
        Whole({name: count for name, count in whole.counts.items() if name in held}, whole.amount, whole.spread)
        for whole in wholes
    ]
    return dict.fromkeys(parts, 0.0) | attribute([*stacks, *mixed])
