"""A checkpoint's folder as a model to be timed in vLLM, in a process of its own."""

import json
import shlex
from collections.abc import Callable
from typing import Any

from blocklib.checkpoint import inspect
from blocklib.loading import readable
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape
from cost_models.engines.vllm_model import VllmModel, VllmSubject, arguments, environment, held_bytes
from cost_models.scenario import Scenario
from nas.export.configuration_decilm import DeciLMConfig
from nas.export.vllm_flags import vllm_flags
from nas.serving.artefact import Artefact
from nas.serving.torch_folder import weight_bytes

_ARGUMENTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "--trust-remote-code": lambda _: {"trust_remote_code": True},
    "--enforce-eager": lambda _: {"enforce_eager": True},
    "--no-enable-prefix-caching": lambda _: {"enable_prefix_caching": False},
    "--hf-overrides": lambda value: {"hf_overrides": json.loads(value)},
}
"""vLLM's flags as arguments of its `LLM`, by the value that follows them."""


class VllmFolder:
    """A folder that vLLM loads. `stays`: its process runs all the time; else only while it is timed."""

    def __init__(self, model: Artefact, scenario: Scenario, stays: bool):
        settings = {
            "device": scenario.device.partition(":")[0],
            "folder": str(model.path.absolute()),
            "blocks": None,
            "arguments": _arguments(model, scenario),
        }
        vocabulary = int(model.config["vocab_size"])
        held = vllm_held_bytes(model, scenario)
        self._model = VllmModel(str(model.path), settings, environment(scenario), vocabulary, held)
        self._subject, self._stays = VllmSubject(self._model, self._model, scenario), stays

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        return self._seconds(self._subject.prefill)

    def decode(self) -> float:
        """Seconds of one step of all sequences, the mean of those in the middle of an answer."""
        return self._seconds(self._subject.decode)

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._model.used_s()

    def peak_bytes(self) -> int:
        """The most main memory that a process of it has held at once, libraries and loading included."""
        return self._model.peak_bytes()

    def close(self) -> None:
        self._model.stop()

    def _seconds(self, run: Callable[[], float]) -> float:
        seconds = run()
        if not self._stays:
            self.close()
        return seconds


def vllm_held_bytes(model: Artefact, scenario: Scenario) -> int:
    """The memory that it takes on each device while it runs."""
    return held_bytes(weight_bytes(model.path), scenario, _arguments(model, scenario))


def _arguments(model: Artefact, scenario: Scenario) -> dict[str, Any]:
    given = arguments(scenario, _cached_values(model))
    words = iter(serving_flags(model))
    for word in words:
        given |= _ARGUMENTS[word](next(words) if word == "--hf-overrides" else "")
    return given


def serving_flags(model: Artefact) -> list[str]:
    """The flags that vLLM needs for a folder; code of one that this package did not write does not run."""
    if not model.is_ours:
        return []
    if model.config.get("model_type") != PuzzleNasConfig.model_type:
        return ["--trust-remote-code"]
    return shlex.split(" ".join(vllm_flags(PuzzleNasConfig.from_pretrained(model.path))))


def _cached_values(model: Artefact) -> int:
    """Keys and values of a token in all layers, at most."""
    config = model.config
    if config["model_type"] == DeciLMConfig.model_type:
        groups = [int(block["attention"]["n_heads_in_group"] or 0) for block in config["block_configs"]]
        return 2 * int(config["head_dim"]) * sum(int(config["num_attention_heads"]) // one for one in groups if one)
    if config["model_type"] == PuzzleNasConfig.model_type:
        return _most(own_shape(PuzzleNasConfig.from_pretrained(model.path)))
    return _most(readable(inspect(model.path)).shape)


def _most(shape: Shape) -> int:
    """The values that a parent of this shape keeps; no child of it keeps more."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim
