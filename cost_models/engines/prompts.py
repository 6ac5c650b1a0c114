"""The prompts of a batch for an engine in another process: token ids, and how many decode steps are timed after them.
Knows no engine.
"""

import random
from dataclasses import dataclass

from cost_models.scenario import Scenario

_STEPS = 32
"""The most decode steps of one sample: they stand in the middle of an answer, so their mean is the answer's."""


@dataclass(frozen=True)
class Prompts:
    """A scenario's batch. `to_prefill` are its prompts; `to_decode` are the same, each with so much of an answer that
    the `steps` decode steps after it stand in the middle of that answer."""

    to_prefill: list[list[int]]
    to_decode: list[list[int]]
    steps: int

    @staticmethod
    def of(scenario: Scenario, vocabulary: int) -> "Prompts":
        """Ids below `vocabulary`, the same ones at each call."""
        steps = min(_STEPS, scenario.generated_tokens - 1)
        length = scenario.prompt_tokens + (scenario.generated_tokens - steps) // 2
        seeded = random.Random(0)
        whole = [[seeded.randrange(vocabulary) for _ in range(length)] for _ in range(scenario.batch)]
        return Prompts([prompt[: scenario.prompt_tokens] for prompt in whole], whole, steps)
