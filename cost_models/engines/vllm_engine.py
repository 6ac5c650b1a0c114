"""The engine `vllm`: vLLM on DeciLM's sizes, each model in a process of its own, with vLLM's own random weights.

The clock is vLLM's: the times of its first and last tokens, of all sequences generated together. Weights are random
for real children too, since no kind that it runs takes a time that depends on their values. CUDA graphs and compiled
code are vLLM's own; on a CPU it runs eagerly. No prefixes are kept from one pass for the next.

vLLM runs no first layer without attention. The exported child has an attention of zeros with one KV head there, and so
has the model that is timed; in stacks without attention its time counts to the fixed part.
"""

import json
import random
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
from cost_models.engines.vllm_process import VllmProcess, interpreter, version_in
from cost_models.errors import TimingError
from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, time_pair, unheard

_STEPS = 32
"""The most decode steps of one sample: they stand in the middle of an answer, so their mean is the answer's."""
_SPARE_CACHE_BYTES = 2**28
_SHARE_OF_GPU = 0.45
"""The share of a GPU's memory that must be free for each of two models at their start."""
_LEAST_BATCHED_TOKENS = 2048
"""vLLM's own number of tokens that enter a pass together."""
_KEPT = ("hidden_size", "num_attention_heads", "head_dim", "vocab_size", "rms_norm_eps", "hidden_act",
         "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "bos_token_id",
         "eos_token_id")  # fmt: skip
"""Fields of the parent's configuration that its children in vLLM have too."""


@dataclass(frozen=True)
class VllmModel:
    """A model that vLLM holds, and its size of vocabulary."""

    process: VllmProcess
    vocabulary: int


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
        return f"vLLM {version_in(interpreter())}"

    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        check_decilm(choices, config)

    @contextmanager
    def random(self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> Iterator[VllmModel]:
        layers = decilm_layers(architecture)
        with tempfile.TemporaryDirectory(prefix="puzzle-nas-") as folder:
            Path(folder, "config.json").write_text(json.dumps(_llama(config, layers)), encoding="utf-8")
            settings = {
                "folder": folder,
                "blocks": [_block(layer, config.num_attention_heads) for layer in layers],
                "arguments": _arguments(config, architecture, scenario),
            }
            process = VllmProcess(settings, _environment(scenario))
            try:
                yield VllmModel(process, config.vocab_size)
            finally:
                process.close()

    @contextmanager
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> Iterator[VllmModel]:
        with self.random(model.config, Architecture.parse(model.config.architecture), scenario) as found:
            yield found

    def time(
        self, control: VllmModel, other: VllmModel, scenario: Scenario, rounds: Rounds, heard: Heard = unheard
    ) -> Comparison:
        pair = VllmSubject(control, scenario), VllmSubject(other, scenario)
        return time_pair(*pair, scenario, rounds, heard, self.meter)


class VllmSubject:
    """A model in vLLM ready to be timed."""

    def __init__(self, model: VllmModel, scenario: Scenario):
        self._process, self._scenario = model.process, scenario
        self._steps = min(_STEPS, scenario.generated_tokens - 1)
        half_way = scenario.prompt_tokens + (scenario.generated_tokens - self._steps) // 2
        seeded = random.Random(0)
        self._prompts = [[seeded.randrange(model.vocabulary) for _ in range(half_way)] for _ in range(scenario.batch)]

    def used_s(self) -> float:
        """CPU seconds that its process has used so far."""
        return self._process.used_s()

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        return self._asked([prompt[: self._scenario.prompt_tokens] for prompt in self._prompts], 1)["prefill_s"]

    def decode(self) -> float:
        """Seconds of one step of all sequences, the mean of those in the middle of an answer."""
        return self._asked(self._prompts, self._steps + 1)["decode_s"] / self._steps

    def _asked(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        found = self._process.ask(prompts, tokens)
        if found["tokens"] != tokens or found["prefill_s"] <= 0 or (tokens > 1 and found["decode_s"] <= 0):
            raise TimingError(f"vLLM was asked for {tokens} tokens of each sequence, and answered {found}")
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


def _arguments(config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> dict[str, Any]:
    """The arguments of vLLM's `LLM`; its server's defaults hold for all others."""
    cached = architecture_cost(architecture, own_shape(config), scenario).cache_bytes
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
        "kv_cache_memory_bytes": 2 * cached + _SPARE_CACHE_BYTES,
        "gpu_memory_utilization": _SHARE_OF_GPU,
        "disable_log_stats": False,
    }


def _environment(scenario: Scenario) -> dict[str, str]:
    """Threads, no network, and, where one process is enough, no second one for vLLM's core."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if scenario.tensor_parallel == 1:
        found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if scenario.device == "cpu":
        threads = str(scenario.threads or usable_cores())
        found |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif ":" in scenario.device:
        found["CUDA_VISIBLE_DEVICES"] = scenario.device.partition(":")[2]
    return found
