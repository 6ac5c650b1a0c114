"""Models side by side, as their engines run them: GGUF files in llama.cpp, folders in vLLM, or in torch, eager or
compiled.

The models of one engine take turns, round by round, each in a process of its own, and every ratio is that of a round.
Models of different engines are timed one engine after the other, and no ratio spans two.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console

from cost_models.engines.engines import engine_of
from cost_models.engines.llama_cpp import GgufFile, LlamaSubject
from cost_models.engines.memory import fit_together
from cost_models.hardware import machine, usable_cores
from cost_models.scenario import ENGINES, USUAL_DTYPE, Scenario
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Comparison, Paired, Rounds, time_all
from nas.errors import UsageError
from nas.serving.artefact import Artefact
from nas.serving.torch_folder import TorchFolder, weight_bytes
from nas.serving.vllm_folder import VllmFolder, vllm_held_bytes
from nas.terminal.progress import bar

Timed = LlamaSubject | TorchFolder | VllmFolder
"""A model in its engine: its passes, the CPU seconds it used, its peak memory, its end."""
_LIBRARIES_BYTES = 600 * 1024**2
"""The memory of a torch process beside its model."""


@dataclass(frozen=True)
class Load:
    """A batch of requests: how many, their prompts, their answers. `threads` None: all cores. Each model runs `rounds`
    times, in turns, on `device`. `kv_cache`: llama.cpp's type of keys and values; None: each model's own, else f16."""

    batch: int = 1
    prompt_tokens: int = 128
    generated_tokens: int = 128
    threads: int | None = None
    rounds: int = 9
    device: str = "cpu"
    kv_cache: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UsageError(f"{self.rounds} rounds have no spread; give 2 or more")

    def scenario(self, engine: str, dtype: str) -> Scenario:
        threads = usable_cores() if self.threads is None else self.threads
        load = self.batch, self.prompt_tokens, self.generated_tokens
        return Scenario(self.device, dtype, *load, threads, engine, kv_cache=self.kv_cache)


@dataclass(frozen=True)
class Figure:
    """The median over rounds of one quantity, and the deviation of a single round (1.48 x the median absolute one), in
    its unit. `ratio` is to the first model of the engine, round by round, `error` its standard error; those that no
    clock takes have neither deviation nor error."""

    value: float
    deviation: float | None = None
    ratio: float = 1.0
    error: float | None = None


@dataclass(frozen=True)
class BenchLine:
    """A model in its engine, and the type of its keys and values, None: the engine's usual one. `figures`: prefill and
    decode in tokens per second, latency in seconds until the last token of the batch, file and peak resident memory in
    bytes. No decode where one token is generated."""

    name: str
    path: str
    weights: str
    kv_cache: str | None
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class EngineBench:
    """The models of one engine; the ratios are to the first. `contention` as in `cost_models/timing/contention.py`."""

    engine: str
    version: str
    threads: int
    contention: float
    lines: tuple[BenchLine, ...]


@dataclass(frozen=True)
class SideBySide:
    """All models that were timed, and the load."""

    load: Load
    engines: tuple[EngineBench, ...]
    notes: tuple[str, ...] = field(default=())


def bench_artefacts(models: Sequence[Artefact], load: Load, console: Console) -> SideBySide:
    """Time all models, the first first. Raises MissingEngineError, with what to type, before anything is timed,
    CheckpointError for a file that is no whole GGUF file, EngineStoppedError where an engine ends."""
    names = list(dict.fromkeys(model.engine for model in models))
    for name in names:
        _check_engine(name, load)
    groups = [[model for model in models if model.engine == name] for name in names]
    notes: tuple[str, ...] = ()
    if len(groups) > 1:
        firsts = " and ".join(f"{group[0].name} in {name}" for name, group in zip(names, groups, strict=True))
        notes = (f"The models run in different engines, so there is no ratio between them: ratios are to {firsts}.",)
    return SideBySide(
        load, tuple(_timed(name, group, load, console) for name, group in zip(names, groups, strict=True)), notes
    )


def _check_engine(name: str, load: Load) -> None:
    """Raise MissingEngineError, UsageError or ScenarioError where it cannot be asked, or not on the device."""
    engine, scenario = engine_of(name), load.scenario(name, USUAL_DTYPE[name])
    engine.check_installed()
    if load.device.partition(":")[0] not in engine.devices:
        raise UsageError(f"{name} is timed on {' or '.join(engine.devices)} here, not on {load.device}: give --device")
    machine(scenario)


def _timed(name: str, models: Sequence[Artefact], load: Load, console: Console) -> EngineBench:
    scenario = load.scenario(name, USUAL_DTYPE[name] if models[0].is_gguf else _folder_dtype(models, name))
    rounds = Rounds(load.rounds, load.rounds, tolerance=0.0, seconds=math.inf)
    with (
        bar(console, f"bench in {name}", "rounds", load.rounds) as told,
        alone_on(scenario.device, told.say),
        _ready(models, scenario) as subjects,
    ):
        heard = told.expect([float(load.rounds)])
        found = time_all(subjects, scenario, rounds, lambda done, _: heard(0, done, load.rounds))
        sizes = [
            # Main memory says little of a model on a GPU.
            {"file_bytes": _size(model)} | ({"peak_bytes": subject.peak_bytes()} if load.device == "cpu" else {})
            for model, subject in zip(models, subjects, strict=True)
        ]
    lines = tuple(
        BenchLine(
            model.name,
            str(model.path),
            _weights(model, scenario),
            _asked_of(model, scenario).kv_cache,
            _bytes(own, sizes[0]) | _figures(comparison),
        )
        for model, comparison, own in zip(models, found, sizes, strict=True)
    )
    return EngineBench(name, engine_of(name).version(), scenario.threads or 1, found[0].contention, lines)


@contextmanager
def _ready(models: Sequence[Artefact], scenario: Scenario) -> Iterator[list[Timed]]:
    """Each as its engine runs it. If memory does not hold all at once, their processes take turns."""
    stays = fit_together((_held_bytes(model, scenario) for model in models), scenario.device)
    with ExitStack() as open_ones:
        subjects = [_subject(model, scenario, stays) for model in models]
        for subject in subjects:
            open_ones.callback(subject.close)
        yield subjects


def _subject(model: Artefact, scenario: Scenario, stays: bool) -> Timed:
    if model.is_gguf:
        asked = _asked_of(model, scenario)
        return LlamaSubject(GgufFile.of(model.path, asked), asked, stays)
    if scenario.engine == "vllm":
        return VllmFolder(model, scenario, stays)
    return TorchFolder(model.path, scenario, stays)


def _asked_of(model: Artefact, scenario: Scenario) -> Scenario:
    """The scenario with the model's own type of keys and values, unless the load asks for one of all."""
    return scenario if scenario.kv_cache else scenario.keeping(model.kv_cache or "")


def _held_bytes(model: Artefact, scenario: Scenario) -> int:
    if model.is_gguf:
        return GgufFile.of(model.path, _asked_of(model, scenario)).held_bytes
    if scenario.engine == "vllm":
        return vllm_held_bytes(model, scenario)
    return weight_bytes(model.path) + _LIBRARIES_BYTES


def _figures(comparison: Comparison) -> dict[str, Figure]:
    asked = comparison.scenario
    found = {"prefill_tokens_per_s": _rate(comparison.prefill, asked.batch * asked.prompt_tokens)}
    if comparison.decode is not None:
        found["decode_tokens_per_s"] = _rate(comparison.decode, asked.batch)
    latency = comparison.latency
    return found | {"latency_s": _figure(latency.other_samples, latency.ratio, latency.spread)}


def _rate(seconds: Paired, tokens: int) -> Figure:
    return _figure([tokens / each for each in seconds.other_samples], 1 / seconds.ratio, seconds.spread)


def _figure(samples: Sequence[float], ratio: float, spread: float) -> Figure:
    value = median(samples)
    deviation = 1.4826 * median(abs(sample - value) for sample in samples)
    return Figure(value, deviation, ratio, ratio * spread)


def _bytes(sizes: Mapping[str, int], firsts: Mapping[str, int]) -> dict[str, Figure]:
    return {name: Figure(size, None, size / firsts[name]) for name, size in sizes.items()}


def _size(model: Artefact) -> int:
    return model.path.stat().st_size if model.is_gguf else weight_bytes(model.path)


def _weights(model: Artefact, scenario: Scenario) -> str:
    """The type of the weights, as far as they are matrices."""
    if not model.is_gguf:
        return scenario.dtype
    types = {tensor.type for tensor in model.header.weights.values() if len(tensor.shape) > 1}
    return types.pop() if len(types) == 1 else model.header.stored


def _folder_dtype(models: Sequence[Artefact], engine: str) -> str:
    """All run in the type that the last was written in, which is a child where there is one."""
    config = models[-1].config
    found = str(config.get("dtype") or config.get("torch_dtype"))
    return found if found in ENGINES[engine] else USUAL_DTYPE[engine]
