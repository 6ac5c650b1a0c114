"""The engine `llama_cpp`: llama.cpp on GGUF files, each model in a server process of its own.

The clock is llama.cpp's: the server reports the milliseconds of a prompt and of the decode steps after it, as
llama-bench does for pp and tg. A batch is as many sequences in parallel. Keys and values are of the architecture's
type, else of the scenario's, f16 if it names none; threads are its own, or all cores. If memory does not hold two
models, their processes take turns as well.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blocklib.block import Architecture, Choice
from blocklib.formats.gguf import check_gguf, write_gguf, write_random_gguf
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.gguf_header import read_header
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import own_shape
from cost_models.analytic import architecture_cost
from cost_models.engines.engine import Engine
from cost_models.engines.llama_server import LlamaServer
from cost_models.engines.memory import check_energy, fit_together
from cost_models.engines.prompts import Prompts
from cost_models.engines.scratch import scratch_folder
from cost_models.errors import TimingError, UnsupportedByEngineError
from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, time_pair, unheard

_SPARE_TOKENS = 8
"""The server wants room for a little more than it is asked."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file to time: its size of vocabulary, the bytes that it takes with its cache, and the type of its keys and
    values; "": the scenario's."""

    file: Path
    vocabulary: int
    held_bytes: int
    cache: str = ""

    @staticmethod
    def of(file: Path, scenario: Scenario) -> "GgufFile":
        """Any GGUF file. Raises CheckpointError where it is none, or is cut, UnsupportedByEngineError where its heads
        do not fit the blocks of the scenario's cache."""
        header = read_header(file)
        layers, heads = int(header.own("block_count", 1)), header.own("attention.head_count", 1)
        kv_heads = header.own("attention.head_count_kv", heads)
        most = max(heads) if isinstance(heads, list) else heads
        key = int(header.own("attention.key_length", header.own("embedding_length", 0) // max(most, 1)))
        value = int(header.own("attention.value_length", key))
        held = sum(kv_heads) if isinstance(kv_heads, list) else layers * kv_heads
        _check_cache((key, value), scenario)
        cache = scenario.cache_bytes(held * (key + value) * scenario.batch * scenario.context_tokens)
        vocabulary = header.keys.get("tokenizer.ggml.tokens") or header.own("vocab_size", 1)
        return GgufFile(file, int(vocabulary), file.stat().st_size + cache)


@dataclass(frozen=True)
class LlamaCpp(Engine):
    """Runs what a GGUF file carries."""

    name = "llama_cpp"
    package = "xllamacpp"
    install = "pip install 'puzzle-nas[llama-cpp]'"
    devices = ("cpu",)

    def version(self) -> str:
        self.check_installed()
        return f"llama.cpp of xllamacpp {version('xllamacpp')}"

    def check(self, choices: Iterable[Choice], config: PuzzleNasConfig, scenario: Scenario) -> None:
        super().check(choices, config, scenario)
        _check_cache((own_shape(config).head_dim,), scenario)

    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        check_gguf(choices, config)

    @contextmanager
    def random(self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> Iterator[GgufFile]:
        with _file() as file:
            write_random_gguf(file, config, architecture, scenario.dtype)
            yield _model(file, config, architecture, scenario)

    @contextmanager
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> Iterator[GgufFile]:
        with _file() as file:
            write_gguf(file, model, scenario.dtype, dummy_vocabulary(model.config.vocab_size))
            yield _model(file, model.config, Architecture.parse(model.config.architecture), scenario)

    def time(
        self, control: GgufFile, other: GgufFile, scenario: Scenario, rounds: Rounds, heard: Heard = unheard
    ) -> Comparison:
        stays = fit_together([control.held_bytes, other.held_bytes])
        check_energy(stays, self.meter)
        with ExitStack() as servers:
            one, two = (servers.enter_context(_subject(model, scenario, stays)) for model in (control, other))
            return time_pair(one, two, scenario, rounds, heard, self.meter)


class LlamaSubject:
    """A GGUF model ready to be timed. `stays`: its server runs all the time; else only while it is timed."""

    def __init__(self, model: GgufFile, scenario: Scenario, stays: bool):
        self._model, self._scenario, self._stays = model, scenario, stays
        self._server: LlamaServer | None = None
        self._ended_s, self._ended_bytes = 0.0, 0
        self._prompts = Prompts.of(scenario, model.vocabulary)

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        with self._running() as server:
            return self._most("prompt_ms", self._complete(server, self._prompts.to_prefill, 1, is_cached=False))

    def decode(self) -> float:
        """Seconds of one step of all sequences, the mean of those in the middle of an answer."""
        asked = self._prompts
        with self._running() as server:
            self._complete(server, asked.to_decode, 1, is_cached=True)
            # All that is left of the prompts is a token each, so all sequences start together.
            found = self._complete(server, asked.to_decode, asked.steps + 1, is_cached=True)
            return self._most("predicted_ms", found) / asked.steps

    def used_s(self) -> float:
        """CPU seconds that its servers have used so far."""
        return self._ended_s + (0.0 if self._server is None else self._server.used_s())

    def peak_bytes(self) -> int:
        """The most memory that a server of it has held at once."""
        return max(self._ended_bytes, 0 if self._server is None else self._server.peak_bytes())

    def close(self) -> None:
        if self._server is not None:
            self._ended_s, self._ended_bytes = self.used_s(), self.peak_bytes()
            self._server.close()
            self._server = None

    @contextmanager
    def _running(self) -> Iterator[LlamaServer]:
        if self._server is None:
            asked = self._scenario
            settings = {
                "file": str(self._model.file),
                "threads": asked.threads or usable_cores(),
                "sequences": asked.batch,
                "context_tokens": asked.context_tokens + _SPARE_TOKENS,
                "batch_tokens": asked.batch * asked.prompt_tokens,
                "cache": self._model.cache or asked.cache_type,
            }
            self._server = LlamaServer(settings)
        yield self._server
        if not self._stays:
            self.close()

    @staticmethod
    def _complete(server: LlamaServer, prompts: list[list[int]], tokens: int, is_cached: bool) -> list[Any]:
        asked = {"prompt": prompts, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        answer = server.ask("/completion", asked | {"cache_prompt": is_cached})
        found: list[Any] = answer if isinstance(answer, list) else [answer]
        if any(one["tokens_predicted"] != tokens for one in found):
            told = [one["tokens_predicted"] for one in found]
            raise TimingError(f"llama.cpp generated {told} tokens where {tokens} were asked of each sequence")
        return found

    @staticmethod
    def _most(name: str, found: list[Any]) -> float:
        """The seconds of the sequence that took longest: they run together."""
        seconds = max(one["timings"][name] for one in found) / 1000
        if seconds <= 0:
            raise TimingError(f"llama.cpp says that {name} was {seconds} s")
        return float(seconds)


def _check_cache(heads: Iterable[int], scenario: Scenario) -> None:
    """Raise UnsupportedByEngineError where a head of so many numbers is not stored in whole blocks."""
    block = scenario.cache_block
    if odd := [size for size in heads if size % block]:
        raise UnsupportedByEngineError(
            f"kv_cache: llama.cpp stores keys and values in {scenario.cache_type} by blocks of {block} numbers, and a "
            f"head has {odd[0]}; use f16, bf16 or f32"
        )


@contextmanager
def _subject(model: GgufFile, scenario: Scenario, stays: bool) -> Iterator[LlamaSubject]:
    subject = LlamaSubject(model, scenario, stays)
    try:
        yield subject
    finally:
        subject.close()


@contextmanager
def _file() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder / "model.gguf"


def _model(file: Path, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario) -> GgufFile:
    held = architecture_cost(architecture, own_shape(config), scenario)
    return GgufFile(file, config.vocab_size, file.stat().st_size + held.cache_bytes, architecture.cache)
