"""The tiny parent and the scenario that tests of costs and of timings share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from blocklib.block import Block
from blocklib.families import shape_of
from blocklib.kinds import parent_architecture, parent_block
from blocklib.model import PuzzleNasConfig
from blocklib.parent import child_config
from blocklib.shape import Shape
from cost_models.engines.torch_eager import TorchEager, time_models
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, unheard

SCENARIO = Scenario("cpu", "float32", batch=2, prompt_tokens=5, generated_tokens=4, threads=1)


@dataclass(frozen=True)
class Clocked(TorchEager):
    """The engine torch with another clock."""

    clock: Callable[..., Comparison] = time_models

    def time(self, control: Any, other: Any, scenario: Scenario, rounds: Rounds, heard: Heard = unheard) -> Comparison:
        return self.clock(control, other, scenario, rounds)


def config_of(family: type[Any] = LlamaConfig, **given: Any) -> PuzzleNasConfig:
    """A tiny parent's. Its head size is not the hidden size over the heads, as in many real models."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "use_sliding_window": False,
    }
    config = family(**(sizes | given))
    shape = shape_of(config)
    return child_config(config, parent_architecture(shape), shape)


def config_for_engines() -> PuzzleNasConfig:
    """A small parent's that every engine runs: vLLM on a CPU has heads of 32 or more."""
    return config_of(hidden_size=64, intermediate_size=96, head_dim=32, num_attention_heads=2, vocab_size=300)


def own_block(shape: Shape) -> Block:
    return parent_block(shape)
