"""The interface of an engine: what runs a model, as far as its times go. One file implements each; `engines.py` is the
table. Knows no engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from blocklib.block import Architecture, Choice
from blocklib.errors import UnsupportedFormatError
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from cost_models.energy.meter import Meter
from cost_models.errors import MissingEngineError, UnsupportedByEngineError
from cost_models.scenario import Scenario
from cost_models.timing.pair import Comparison, Heard, Rounds, unheard

Runnable = Any
"""A model in the form that one engine runs: only that engine looks into it."""


@dataclass(frozen=True)
class Engine(ABC):
    """A program that runs a model. `meter`, if given, is read around each sample."""

    meter: Meter | None = None

    name: ClassVar[str]
    package: ClassVar[str]
    """The module that it needs."""
    install: ClassVar[str]
    """The command that installs it."""
    devices: ClassVar[tuple[str, ...]]
    """The kinds of device that it runs on."""
    holds_both: ClassVar[bool] = False
    """Whether the two models that it times are in memory together; else they take turns where memory is short."""

    def check_installed(self) -> None:
        """Raise MissingEngineError, with the command to type, where it is not installed."""
        if find_spec(self.package) is None:
            raise MissingEngineError(f"the engine {self.name} is not installed; run: {self.install}")

    @abstractmethod
    def version(self) -> str:
        """Its name and version, on which times depend."""

    def check(self, choices: Iterable[Choice], config: PuzzleNasConfig, scenario: Scenario) -> None:
        """Raise UnsupportedByEngineError at the first choice that it cannot run in a child of a parent with this
        configuration, or where it does not run on the scenario's device. Loads nothing."""
        if scenario.device.partition(":")[0] not in self.devices:
            raise UnsupportedByEngineError(
                f"the engine {self.name} runs on {' and '.join(self.devices)}, not on {scenario.device}; give "
                f"scenario.device: {self.devices[0]}, or scenario.engine: torch"
            )
        try:
            self.check_choices(choices, config)
        except UnsupportedFormatError as error:
            raise UnsupportedByEngineError(f"the engine {self.name} cannot run it: {error}") from error

    @abstractmethod
    def check_choices(self, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
        """Raise UnsupportedFormatError or UnsupportedByEngineError at the first choice that it cannot run."""

    @abstractmethod
    def random(
        self, config: PuzzleNasConfig, architecture: Architecture, scenario: Scenario
    ) -> AbstractContextManager[Runnable]:
        """`architecture` with random weights, which need not span the parent's layers; `config` is the parent's."""

    @abstractmethod
    def real(self, model: PuzzleNasForCausalLM, scenario: Scenario) -> AbstractContextManager[Runnable]:
        """A model that torch holds, as this engine runs it: its weights in the scenario's type, or random ones where
        they make no difference to the time. It is not changed."""

    @abstractmethod
    def time(
        self, control: Runnable, other: Runnable, scenario: Scenario, rounds: Rounds, heard: Heard = unheard
    ) -> Comparison:
        """Time `other` against `control`, in turns. Raises TimingError where a pass gives no finite result or no time,
        EngineStoppedError where the engine ends half-way."""
