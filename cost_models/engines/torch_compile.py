"""The engine `torch_compile`: layers compiled by torch.compile, over a static cache; a CUDA decode step is one graph.

Layers are compiled one by one, not the model as a whole: layers of the same sizes share their code, which is compiled
once (torch's "regional compilation"). The 30 layers of SmolLM2 took 96 s of CPU time as a whole, again for each stack;
one by one a new stack took 3 to 5 s. Each layer is given a cache of its own, so that its number is no part of its code.

Kinds of FFN in which the tokens decide what runs, or which call an operation of this package's own, are refused.
"""

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer

from blocklib.allocator import kept_memory
from blocklib.block import Architecture, Choice
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from cost_models.engines.torch_eager import TorchEager
from cost_models.errors import MissingEngineError, TimingError, UnsupportedByEngineError
from cost_models.hardware import cpu_threads, synchronize
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, time_pair, unheard

_TOKENS_DECIDE = "what runs in it depends on the tokens"
_OWN_OPERATION = "it picks rows by an operation that torch.compile does not know"
_REFUSED = {
    "moe": _TOKENS_DECIDE,
    "sigma_moe": _TOKENS_DECIDE,
    "fff": _TOKENS_DECIDE,
    "dip": _OWN_OPERATION,
    "dip_threshold": _TOKENS_DECIDE,
    "topk": _OWN_OPERATION,
}
"""The kinds that cannot be compiled into one graph, each with its reason."""
_MOST_CODES = 10_000
"""The most compiled forms of a layer: torch gives up after 8."""
_STEPS = 32
"""The most decode steps of one sample on CUDA."""
_WARM_UPS = 3
"""Passes before a graph is captured, as torch's documentation has it."""


class TorchCompile(TorchEager):
    """Runs what torch.compile captures without a break, on a CPU or with CUDA."""

    name = "torch_compile"
    devices = ("cpu", "cuda")

    def version(self) -> str:
        return f"torch {torch.__version__}, compiled"

    def check_installed(self) -> None:
        super().check_installed()
        if not (os.environ.get("CXX") or any(shutil.which(name) for name in ("c++", "g++", "clang++"))):
            raise MissingEngineError(
                "the engine torch_compile needs a C++ compiler, and c++, g++, clang++ and $CXX are not there; run: "
                "apt-get install g++"
            )

    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        for choice in choices:
            for role, subblock in choice.subblocks:
                if role == "ffn" and subblock.kind in _REFUSED:
                    raise UnsupportedByEngineError(
                        f"the engine torch_compile cannot run {choice}: {_REFUSED[subblock.kind]}, so it cannot be "
                        "compiled into one graph; leave it out, or take the engine torch"
                    )

    @contextmanager
    def random(
        self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario
    ) -> Iterator[PuzzleNasForCausalLM]:
        with super().random(config, architecture, scenario) as model, compiled(model):
            yield model

    @contextmanager
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> Iterator[PuzzleNasForCausalLM]:
        served = super().real(model, scenario)
        del model  # The engine holds what it runs, which may be a copy.
        with served as own, compiled(own):
            yield own

    def time(self, control: Any, other: Any, scenario: Scenario, rounds: Rounds, heard: Heard = unheard) -> Comparison:
        with cpu_threads(scenario), kept_memory(), torch.inference_mode():
            pair = CompiledSubject(control, scenario), CompiledSubject(other, scenario)
            return time_pair(*pair, scenario, rounds, heard, self.meter)


class SeparateCache(StaticCache):
    """A static cache for `tokens` tokens of each sequence. `each` holds a cache for every layer that attends, of that
    layer alone; None for others."""

    def __init__(self, model: PuzzleNasForCausalLM, batch: int, tokens: int):
        super().__init__(config=model.config, max_cache_len=tokens)
        self.kept = [layer for layer in self.layers if isinstance(layer, StaticLayer)]
        self.each = [Cache(layers=[layer]) if isinstance(layer, StaticLayer) else None for layer in self.layers]
        attentions = [layer.layer.self_attn for layer in model.model.layers if layer.attends]
        seeded = torch.Generator(model.device).manual_seed(0)
        for kept, attention in zip(self.kept, attentions, strict=True):
            size = (batch, attention.k_proj.out_features // attention.head_dim, 1, attention.head_dim)
            like = torch.empty(size, dtype=model.dtype, device=model.device)
            # Now, since layers that are compiled cannot do it.
            kept.lazy_initialization(like, like)
            for states in (kept.keys, kept.values):
                assert states is not None
                states.uniform_(-1, 1, generator=seeded)

    def place(self, tokens: int) -> None:
        """The next pass runs as if so many tokens were there."""
        for layer in self.kept:
            layer.cumulative_length.fill_(tokens)
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = tokens


class CompiledLayer(nn.Module):
    """A layer that runs compiled, on its own part of a `SeparateCache`."""

    def __init__(self, layer: Any, index: int):
        super().__init__()
        self.layer, self.index = layer, index
        self.config, self.attends, self.window = layer.config, layer.attends, layer.window
        if layer.attends:
            layer.self_attn.layer_idx = 0

    def forward(self, hidden_states: Tensor, cache: SeparateCache | None = None, **kwargs: Any) -> Tensor:
        own = cache.each[self.index] if cache is not None and self.attends else None
        output: Tensor = _compiled(self.layer, hidden_states, cache=own, **kwargs)
        return output


@torch.compile(fullgraph=True, dynamic=False)
def _compiled(layer: nn.Module, hidden_states: Tensor, **kwargs: Any) -> Any:
    return layer(hidden_states, **kwargs)


class CompiledSubject:
    """A model with compiled layers ready to be timed."""

    def __init__(self, model: PuzzleNasForCausalLM, scenario: Scenario):
        self._model, self._scenario = model, scenario
        attends = any(layer.attends for layer in model.model.layers)
        self.cache = SeparateCache(model, scenario.batch, scenario.context_tokens) if attends else None
        seeded = torch.Generator().manual_seed(0)
        size = (scenario.batch, scenario.prompt_tokens)
        self._prompt_BT = torch.randint(model.config.vocab_size, size, generator=seeded).to(model.device)
        self._next_B1 = self._prompt_BT[:, :1].contiguous()
        self._half_way = scenario.prompt_tokens + scenario.generated_tokens // 2
        self._graph: Any = None

    def used_s(self) -> float:
        """It runs in this process."""
        return 0.0

    def prefill(self) -> float:
        """Seconds from an empty cache to the logits of the last token."""
        return self._seconds(self._prompt_BT, 0)

    def decode(self) -> float:
        """Seconds of one step half-way through an answer; on CUDA, the mean of steps back to back."""
        if self._model.device.type == "cpu":
            return self._seconds(self._next_B1, self._half_way)
        with torch.cuda.device(self._model.device):
            if self._graph is None:
                self._graph = self._captured()
            return self._replayed()

    def logits(self, ids_BT: Tensor, seen: int) -> Tensor:
        """Those of the last token, [B, 1, V], as if `seen` tokens were in the cache before."""
        if self.cache is not None:
            self.cache.place(seen)
        return self._step(ids_BT)

    def _step(self, ids_BT: Tensor) -> Tensor:
        found: Tensor = self._model(input_ids=ids_BT, cache=self.cache, use_cache=True, logits_to_keep=1).logits
        return found

    def _seconds(self, ids_BT: Tensor, seen: int) -> float:
        synchronize(self._model.device)
        started = perf_counter()
        logits = self.logits(ids_BT, seen)
        synchronize(self._model.device)
        return _checked(perf_counter() - started, logits)

    def _captured(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A decode step as a graph, and where it leaves its logits."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self.logits(self._next_B1, self._half_way)
        torch.cuda.current_stream().wait_stream(aside)
        if self.cache is not None:
            self.cache.place(self._half_way)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(self._next_B1)
        return graph, logits

    def _replayed(self) -> float:
        graph, logits = self._graph
        answer = self._scenario.generated_tokens
        steps = min(_STEPS, answer - answer // 2)
        if self.cache is not None:
            self.cache.place(self._half_way)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            graph.replay()
        end.record()
        end.synchronize()
        return _checked(start.elapsed_time(end) / 1000 / steps, logits)


def _checked(seconds: float, logits: Tensor) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise TimingError(f"a compiled pass took {seconds} s by the clock")
    if not torch.isfinite(logits[0]).all():
        raise TimingError("the logits of a compiled pass are not finite")
    return seconds


@contextmanager
def compiled(model: PuzzleNasForCausalLM) -> Iterator[None]:
    """The model's layers are replaced by compiled ones. Inside, every form of a layer is compiled, however many there
    are."""
    model.model.layers = nn.ModuleList([CompiledLayer(layer, index) for index, layer in enumerate(model.model.layers)])
    limits = {"recompile_limit": _MOST_CODES, "accumulated_recompile_limit": _MOST_CODES}
    with torch._dynamo.config.patch(limits):
        yield
