"""The engine `vllm`: vLLM on DeciLM's sizes, each model in a process of its own, with vLLM's own random weights.

The clock is vLLM's: the times of its first and last tokens, of all sequences generated together. Weights are random
for real children too, since no kind that it runs takes a time that depends on their values. CUDA graphs and compiled
code are vLLM's own; on a CPU it runs eagerly. No prefixes are kept from one pass for the next.

If the memory that is free on the device does not hold two models, their processes take turns: each start reads no
file, so it takes seconds, and the first answer after it is not counted.

vLLM runs no first layer without attention. The exported child has an attention of zeros with one KV head there, and so
has the model that is timed; in stacks without attention its time counts to the fixed part.
"""

import json
import math
import os
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
from cost_models.engines.prompts import Prompts
from cost_models.engines.vllm_process import GPUS, VllmProcess, interpreter, version_in, visible_gpu
from cost_models.errors import EngineStoppedError, TimingError
from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, time_pair, unheard

_SPARE_CACHE_BYTES = 2**28
_BLOCK_TOKENS = 128
"""A sequence takes its cache in blocks of so many tokens on a CPU, and of fewer on most GPUs."""
_LIBRARIES_BYTES = 2**30
"""The memory of a process beside its weights and its cache."""
_SHARE_OF_GPU = 0.01
"""vLLM does not start if less than this share of a GPU's memory is free. It has no other use here, where the size of
the cache is given, and `memory.py` asks for the memory that a model takes."""
_LEAST_BATCHED_TOKENS = 2048
"""vLLM's own number of tokens that enter a pass together."""
_KEPT = ("hidden_size", "num_attention_heads", "head_dim", "vocab_size", "rms_norm_eps", "hidden_act",
         "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "bos_token_id",
         "eos_token_id")  # fmt: skip
"""Fields of the parent's configuration that its children in vLLM have too."""


class VllmModel:
    """A model for vLLM to hold, and its size of vocabulary. Its process runs from the first question until `stop`.

    `held_bytes`: the memory that it takes on each device while its process runs.
    """

    def __init__(self, settings: dict[str, Any], environment: dict[str, str], vocabulary: int, held_bytes: int):
        self.vocabulary, self.held_bytes = vocabulary, held_bytes
        self._settings, self._environment = settings, environment
        self._process: VllmProcess | None = None
        self._ended_s = 0.0

    @property
    def runs(self) -> bool:
        return self._process is not None

    def ask(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """As `VllmProcess.ask`. The first answer of a process is thrown away, since it allocates and compiles."""
        if self._process is None:
            self._process = VllmProcess(self._settings, self._environment)
            self._answer(prompts, tokens)
        return self._answer(prompts, tokens)

    def _answer(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        assert self._process is not None
        try:
            return self._process.ask(prompts, tokens)
        except EngineStoppedError:
            self._process = None  # It has ended, and is closed.
            raise

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._ended_s + (0.0 if self._process is None else self._process.used_s())

    def stop(self) -> None:
        """End its process, if it runs; another question starts another one."""
        if self._process is not None:
            process, self._process = self._process, None
            self._ended_s += process.used_s()
            process.close()


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
            arguments = _arguments(config, layers, scenario)
            settings = {
                "device": scenario.device.partition(":")[0],
                "folder": folder,
                "blocks": [_block(layer, config.num_attention_heads) for layer in layers],
                "arguments": arguments,
            }
            weights = architecture_cost(architecture, own_shape(config), scenario).weight_bytes
            # The size of the cache is that on each device.
            held = weights // scenario.tensor_parallel + arguments["kv_cache_memory_bytes"] + _LIBRARIES_BYTES
            model = VllmModel(settings, _environment(scenario), config.vocab_size, held)
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


class VllmSubject:
    """A model in vLLM ready to be timed. `stays`: its process may run while that of `beside` does; else it stops that
    one first."""

    def __init__(self, model: VllmModel, beside: VllmModel, scenario: Scenario, stays: bool = True):
        self._model, self._beside, self._stays = model, beside, stays
        self._prompts = Prompts.of(scenario, model.vocabulary)

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._model.used_s()

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        return self._asked(self._prompts.to_prefill, 1)["prefill_s"]

    def decode(self) -> float:
        """Seconds of one step of all sequences, the mean of those in the middle of an answer."""
        return self._asked(self._prompts.to_decode, self._prompts.steps + 1)["decode_s"] / self._prompts.steps

    def _asked(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        if not self._stays and self._beside is not self._model:
            self._beside.stop()
        found = self._model.ask(prompts, tokens)
        if found["tokens"] != tokens or found["prefill_s"] <= 0 or (tokens > 1 and found["decode_s"] <= 0):
            raise TimingError(f"vLLM was asked for {tokens} tokens of each sequence, and answered {found}")
        if found["passes"] != 1:
            raise TimingError(
                f"vLLM took {len(prompts)} prompts in {found['passes']} passes, and a prefill is one; lower the batch"
            )
        if found["preemptions"]:
            raise TimingError(
                f"vLLM's cache did not hold {len(prompts)} sequences at once, and it computed {found['preemptions']} "
                "of them again; lower the batch"
            )
        return found


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


def _arguments(config: PuzzleNasConfig, layers: tuple[DeciLayer, ...], scenario: Scenario) -> dict[str, Any]:
    """The arguments of vLLM's `LLM`; its server's defaults hold for all others."""
    return {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": scenario.dtype,
        "enforce_eager": scenario.device == "cpu",
        "tensor_parallel_size": scenario.tensor_parallel,
        "max_model_len": scenario.context_tokens,
        "max_num_seqs": scenario.batch,
        # All prompts enter one pass, which is what a prefill is here.
        "max_num_batched_tokens": max(_LEAST_BATCHED_TOKENS, scenario.batch * scenario.context_tokens),
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 2 * _cache_bytes(config, layers, scenario) + _SPARE_CACHE_BYTES,
        "gpu_memory_utilization": _SHARE_OF_GPU,
        "disable_log_stats": False,
    }


def _cache_bytes(config: PuzzleNasConfig, layers: tuple[DeciLayer, ...], scenario: Scenario) -> int:
    """Keys and values of all sequences in whole blocks, those of a first layer's attention of zeros included."""
    tokens = math.ceil(scenario.context_tokens / _BLOCK_TOKENS) * _BLOCK_TOKENS * scenario.batch
    values = 2 * sum(layer.kv_heads or 0 for layer in layers) * own_shape(config).head_dim
    return values * tokens * scenario.bytes_per_value


def _environment(scenario: Scenario) -> dict[str, str]:
    """Threads, no network, and no process for vLLM's core alone, which would schedule the first prompt before it had
    the last."""
    found = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if scenario.device == "cpu":
        threads = str(scenario.threads or usable_cores())
        found |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif ":" in scenario.device:
        found[GPUS] = visible_gpu(scenario.device, os.environ.get(GPUS))
    return found
