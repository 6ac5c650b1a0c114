"""The engine `torch`: transformers' eager models, with a cache that grows. Two models that are timed are in this one
process, so memory holds both at once."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from blocklib.allocator import kept_memory
from blocklib.block import Architecture, Choice
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import child_config, in_type, model_with, own_shape
from cost_models.analytic import architecture_cost
from cost_models.energy.meter import Meter
from cost_models.engines.engine import Engine
from cost_models.errors import ScenarioError, TimingError
from cost_models.hardware import available_bytes, cpu_threads, synchronize
from cost_models.quantities import BYTES
from cost_models.scenario import Scenario
from cost_models.timing.pair import ROUNDS, Comparison, Heard, Rounds, time_pair, unheard


@dataclass(frozen=True)
class TorchEager(Engine):
    """Runs every kind of subblock, in float32, bfloat16 and float16."""

    name = "torch"
    package = "torch"
    install = "pip install torch"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps", "xpu")
    holds_both = True

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        """It runs them all."""

    @contextmanager
    def random(
        self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario
    ) -> Iterator[PuzzleNasForCausalLM]:
        self._check_free(config, architecture, scenario)
        yield random_model(config, architecture, scenario)

    @contextmanager
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> Iterator[PuzzleNasForCausalLM]:
        self._check_free(model.config, Architecture.parse(model.config.architecture), scenario)
        # Weights in memory that a file is mapped to may lie at odd addresses, where products are slower. The model that
        # was given is held no longer.
        model = in_type(model, torch_dtype(scenario), scenario.device, copy=True)
        yield model

    def time(
        self,
        control: PreTrainedModel,
        other: PreTrainedModel,
        scenario: Scenario,
        rounds: Rounds,
        heard: Heard = unheard,
    ) -> Comparison:
        return time_models(control, other, scenario, rounds, heard, self.meter)

    def _check_free(self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> None:
        """Raise ScenarioError where the memory that is free does not hold one more model."""
        cost = architecture_cost(architecture, own_shape(config), scenario)
        held, free = cost.weight_bytes + cost.cache_bytes, _free_bytes(torch.device(scenario.device))
        if held > free:
            takes, there = (BYTES.format("memory", float(count)) for count in (held, free))
            raise ScenarioError(
                f"the engine {self.name} holds both models that it times at once: one of them takes {takes}, and "
                f"{scenario.device} has {there} free; lower the batch or the tokens, or give scenario.engine: vllm or "
                "llama_cpp, whose models take turns"
            )


TORCH = TorchEager()


class TorchSubject:
    """A model ready to be timed: it has run once, and keeps a cache of the prompt and half the generated tokens.

    Raises ValueError where the model is not on the scenario's device or not of its dtype.
    """

    def __init__(self, model: PreTrainedModel, scenario: Scenario):
        device, dtype = torch.device(scenario.device), torch_dtype(scenario)
        if model.device.type != device.type or model.dtype != dtype:
            raise ValueError(f"the scenario is {scenario}; the model is {model.dtype} on {model.device}: move it first")
        self._model = model
        seeded = torch.Generator().manual_seed(0)
        size = (scenario.batch, scenario.prompt_tokens + scenario.generated_tokens // 2)
        ids_BT = torch.randint(model.config.vocab_size, size, generator=seeded).to(model.device)
        self._prompt_BT = ids_BT[:, : scenario.prompt_tokens].contiguous()
        self._next_B1 = ids_BT[:, :1].contiguous()
        self.cache = new_cache(model)
        self._run(ids_BT, self.cache)

    def used_s(self) -> float:
        """It runs in this process."""
        return 0.0

    def prefill(self) -> float:
        """Seconds from an empty cache to the logits of the last token."""
        return self._run(self._prompt_BT, new_cache(self._model))

    def decode(self) -> float:
        """Seconds of one step on the kept cache, which the step leaves unchanged."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, CacheLayerMixin)]
        before = [dict(vars(layer)) for layer in layers]
        seconds = self._run(self._next_B1, self.cache)
        # A step does not change these tensors; it makes longer ones. `crop` would replace them by strided views of the
        # longer ones, and the next step would copy those up to three times more slowly.
        for layer, state in zip(layers, before, strict=True):
            vars(layer).update(state)
        return seconds

    def _run(self, ids_BT: Tensor, cache: DynamicCache) -> float:
        synchronize(self._model.device)
        started = perf_counter()
        logits = self._model(input_ids=ids_BT, cache=cache, use_cache=True, logits_to_keep=1).logits
        synchronize(self._model.device)
        seconds = perf_counter() - started
        if not (math.isfinite(seconds) and seconds > 0):
            raise TimingError(f"a pass over {tuple(ids_BT.shape)} tokens took {seconds} s by the clock")
        # One row is enough: a value that is not finite in a layer makes all logits of its sequence not finite.
        if not torch.isfinite(logits[0]).all():
            raise TimingError(f"the logits of a pass over {tuple(ids_BT.shape)} tokens are not finite")
        return seconds


def _free_bytes(device: torch.device) -> int:
    """Memory that is free for this process: on a GPU, with the memory that its allocator keeps for it."""
    kept = 0
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device.type)
        kept = module.memory_reserved(device) - module.memory_allocated(device)
    return available_bytes(device) + kept


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for `model`."""
    cache = DynamicCache(config=model.config)
    # transformers cannot compute the length of a cache whose layers keep nothing, so such a model gets one without
    # layers.
    return cache if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers) else DynamicCache()


def torch_dtype(scenario: Scenario) -> torch.dtype:
    """The scenario's type of weights in torch; of a quantised type the type of its scales, which bound its range."""
    names = {"f32": "float32", "bf16": "bfloat16"}
    found = getattr(torch, names.get(scenario.dtype, scenario.dtype), torch.float16)
    return found if isinstance(found, torch.dtype) else torch.float16


def time_models(
    control: PreTrainedModel,
    other: PreTrainedModel,
    scenario: Scenario,
    rounds: Rounds = ROUNDS,
    heard: Heard = unheard,
    meter: Meter | None = None,
) -> Comparison:
    """Time `other` against `control`, both already of the scenario's device and dtype, on a cache of the prompt and
    half the generated tokens, the mean over an answer.

    Raises ValueError where a model is not on the device or not of the dtype, TimingError where logits are not finite,
    the clock gives no time or the meter no joules.
    """
    with cpu_threads(scenario), kept_memory(), torch.inference_mode():
        pair = TorchSubject(control, scenario), TorchSubject(other, scenario)
        return time_pair(*pair, scenario, rounds, heard, meter)


def random_model(config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> PuzzleNasForCausalLM:
    """`architecture` with random weights, on the scenario's device. `config` is the parent's.

    The architecture need not span the parent's layers. Random, not constant: how fast a GPU multiplies depends on the
    numbers; norms are ones, so that nothing vanishes or overflows.
    """
    own = child_config(config, architecture, own_shape(config))
    with torch.device("meta"):
        empty = PuzzleNasForCausalLM(own).state_dict()
    dtype = torch_dtype(scenario)
    seeded = torch.Generator(scenario.device).manual_seed(0)

    def fill(name: str, like: Tensor) -> Tensor:
        if "norm" in name:
            return torch.ones(like.shape, dtype=dtype, device=scenario.device)
        tensor = torch.empty(like.shape, dtype=dtype, device=scenario.device)
        return tensor.uniform_(-0.05, 0.05, generator=seeded)

    weights = {name: fill(name, tensor) for name, tensor in empty.items()}
    with torch.device(scenario.device):
        return model_with(own, weights)
