"""Every engine there is, written out. Adding one is a file of its own and a line here, and its types in
`cost_models/scenario.py`."""

from cost_models.energy.meter import Meter
from cost_models.engines.engine import Engine
from cost_models.engines.llama_cpp import LlamaCpp
from cost_models.engines.torch_compile import TorchCompile
from cost_models.engines.torch_eager import TorchEager
from cost_models.engines.vllm_engine import Vllm
from cost_models.hardware import machine
from cost_models.scenario import Scenario

_ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (TorchEager, TorchCompile, LlamaCpp, Vllm)}


def engine_of(name: str, meter: Meter | None = None) -> Engine:
    """The engine that a scenario names."""
    return _ENGINES[name](meter)


def describe(scenario: Scenario) -> str:
    """One line that names this machine and the engine: the same line, the same times.

    Raises ScenarioError for a device that torch does not find here, MissingEngineError for an engine that is not here.
    """
    return f"{machine(scenario)}, {engine_of(scenario.engine).version()}"
