"""The engine `vllm`: vLLM on DeciLM's sizes, each model in a process of its own, with vLLM's own random weights.

Weights are random for real children too, since no kind that it runs takes a time that depends on their values.

If the memory that is free on the device does not hold two models, their processes take turns: each start reads no
file, so it takes seconds, and the first answer after it is not counted.

vLLM runs no first layer without attention. The exported child has an attention of zeros with one KV head there, and so
has the model that is timed; in stacks without attention its time counts to the fixed part.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklib.block import Architecture, Choice
from blocklib.formats.decilm import DeciLayer, check_decilm, decilm_layers
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import own_shape
from cost_models.analytic import architecture_cost
from cost_models.engines.engine import Engine
from cost_models.engines.memory import check_energy, fit_together
from cost_models.engines.vllm_model import VllmModel, VllmSubject, arguments, environment, held_bytes
from cost_models.engines.vllm_process import interpreter, version_in
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, time_pair, unheard

_KEPT = ("hidden_size", "num_attention_heads", "head_dim", "vocab_size", "rms_norm_eps", "hidden_act",
         "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "bos_token_id",
         "eos_token_id")  # fmt: skip
"""Fields of the parent's configuration that its children in vLLM have too."""


@dataclass(frozen=True)
class Vllm(Engine):
    """Runs grouped attention, dense FFNs, fused runs and empty slots."""

    name = "vllm"
    package = "vllm"
    install = "pip install vllm"
    devices = ("cpu", "cuda")

    def check_installed(self) -> None:
        version_in(interpreter())

    def version(self) -> str:
        return version_in(interpreter())

    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        check_decilm(choices, config)

    @contextmanager
    def random(self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> Iterator[VllmModel]:
        layers = decilm_layers(architecture)
        with tempfile.TemporaryDirectory(prefix="puzzle-nas-") as folder:
            Path(folder, "config.json").write_text(json.dumps(_llama(config, layers)), encoding="utf-8")
            given = arguments(scenario, _cached_values(config, layers)) | {"load_format": "dummy"}
            settings = {
                "device": scenario.device.partition(":")[0],
                "folder": folder,
                "blocks": [_block(layer, config.num_attention_heads) for layer in layers],
                "arguments": given,
            }
            weights = architecture_cost(architecture, own_shape(config), scenario).weight_bytes
            held = held_bytes(weights, scenario, given)
            model = VllmModel("random weights", settings, environment(scenario), config.vocab_size, held)
            try:
                yield model
            finally:
                model.stop()

    @contextmanager
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> Iterator[VllmModel]:
        with self.random(model.config, Architecture.parse(model.config.architecture), scenario) as found:
            yield found

    def time(
        self, control: VllmModel, other: VllmModel, scenario: Scenario, rounds: Rounds, heard: Heard = unheard
    ) -> Comparison:
        # Memory that is free is less what running models take.
        stays = fit_together((model.held_bytes for model in {control, other} if not model.runs), scenario.device)
        check_energy(stays, self.meter)
        pair = VllmSubject(control, other, scenario, stays), VllmSubject(other, control, scenario, stays)
        return time_pair(*pair, scenario, rounds, heard, self.meter)


def _llama(config: PuzzleNasConfig, layers: tuple[DeciLayer, ...]) -> dict[str, Any]:
    """The config.json of a Llama with so many layers; their sizes come with the blocks."""
    shape = own_shape(config)
    return {name: getattr(config, name) for name in _KEPT} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": len(layers),
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn_width,
        "head_dim": shape.head_dim,
    }


def _block(layer: DeciLayer, heads: int) -> dict[str, dict[str, Any]]:
    """A layer as vLLM's DeciLM reads it: widths as they are, without the multiplier, which would be rounded."""
    group = None if layer.kv_heads is None else heads // layer.kv_heads
    attention = {"no_op": group is None, "n_heads_in_group": group}
    return {"attention": attention, "ffn": {"no_op": layer.ffn_width is None, "intermediate_size": layer.ffn_width}}


def _cached_values(config: PuzzleNasConfig, layers: tuple[DeciLayer, ...]) -> int:
    """Keys and values of a token in all layers, those of a first layer's attention of zeros included."""
    return 2 * sum(layer.kv_heads or 0 for layer in layers) * own_shape(config).head_dim
