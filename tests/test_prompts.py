"""The prompts that engines in other processes are asked with."""

from dataclasses import replace

import pytest

from cost_models.engines.prompts import Prompts
from cost_models.scenario import Scenario

CHAT = Scenario("cpu", "float32", batch=3, prompt_tokens=20, generated_tokens=101)


def test_the_steps_stand_in_the_middle_of_the_answer() -> None:
    asked = Prompts.of(CHAT, 300)
    before = len(asked.to_decode[0]) - CHAT.prompt_tokens
    assert abs(before - (CHAT.generated_tokens - asked.steps - before)) <= 1


@pytest.mark.parametrize("generated", [1, 2, 4, 33, 1000])
def test_no_sequence_outgrows_its_context(generated: int) -> None:
    scenario = replace(CHAT, generated_tokens=generated)
    asked = Prompts.of(scenario, 300)
    assert {len(prompt) for prompt in asked.to_prefill} == {scenario.prompt_tokens}
    assert all(len(prompt) + asked.steps + 1 <= scenario.context_tokens for prompt in asked.to_decode)
    assert asked.steps < generated


def test_both_are_the_same_batch_at_each_call() -> None:
    asked = Prompts.of(CHAT, 300)
    assert asked == Prompts.of(CHAT, 300)
    assert asked.to_prefill == [prompt[: CHAT.prompt_tokens] for prompt in asked.to_decode]
    assert len({tuple(prompt) for prompt in asked.to_prefill}) == CHAT.batch
    assert all(0 <= one < 300 for prompt in asked.to_decode for one in prompt)
