"""Models timed side by side: prefill from an empty cache, and decode steps on a full one.

A machine's speed drifts by several per cent within seconds, for all its programs alike. So the models take turns,
round by round, and the result is the median over the rounds of the ratio within a round. A model timed alone would
include the drift. This file knows no engine and no model: it calls the passes that an engine gives it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median
from time import perf_counter
from typing import Protocol

from cost_models.energy.meter import Meter
from cost_models.errors import TimingError
from cost_models.metrics import LATENCY, Metric
from cost_models.scenario import Scenario
from cost_models.timing.contention import Watch

_SAMPLE_S = 0.02
"""Shorter passes are repeated within a round, until the round's sample is about this long."""
_MOST_PASSES_PER_S = 2500
"""The number of passes in a round's sample, for each second of the sample."""


@dataclass(frozen=True)
class Rounds:
    """When to stop: after `least` rounds, once every ratio's standard error is under `tolerance`; else after `most`, or
    after `seconds`."""

    least: int = 5
    most: int = 40
    tolerance: float = 0.01
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 2 <= self.least <= self.most:
            raise ValueError(
                f"rounds: at least {self.least} and at most {self.most} is impossible; the spread needs two or more"
            )

    def enough(self, done: int, spread: float, spent_s: float) -> bool:
        return done >= self.least and (spread < self.tolerance or done >= self.most or spent_s >= self.seconds)


ROUNDS = Rounds()


@dataclass(frozen=True)
class Paired:
    """One quantity measured in both models: one sample of each per round, in the quantity's unit."""

    control_samples: tuple[float, ...]
    other_samples: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Other over control, round by round."""
        return tuple(o / c for o, c in zip(self.other_samples, self.control_samples, strict=True))

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def spread(self) -> float:
        """The relative standard error of `ratio`: that of a median, from the median absolute deviation, for a normal
        distribution. It is infinite after a single round.
        """
        if len(self.ratios) == 1:
            return math.inf
        deviation = 1.4826 * median(abs(ratio - self.ratio) for ratio in self.ratios)
        return math.sqrt(math.pi / 2 / len(self.ratios)) * deviation / self.ratio

    def and_then(self, later: "Paired") -> "Paired":
        """The rounds of both."""
        return Paired(self.control_samples + later.control_samples, self.other_samples + later.other_samples)

    @property
    def control(self) -> float:
        return median(self.control_samples)

    @property
    def other(self) -> float:
        """The control's median times the median ratio, so that drift between the rounds cancels."""
        return self.control * self.ratio


@dataclass(frozen=True)
class Comparison:
    """A model timed against a control under a scenario. `decode` is of one step; None where none was timed.

    `energy`: joules of the same passes, by field of a cost; empty where no meter was read.
    `contention`: the share of the cores needed that other programs kept busy meanwhile (`contention.py`).
    """

    scenario: Scenario
    prefill: Paired
    decode: Paired | None = None
    contention: float = field(default=0.0, kw_only=True)
    energy: Mapping[str, Paired] = field(default_factory=dict, kw_only=True)

    @property
    def parts(self) -> dict[str, Paired]:
        """Every part that was measured, by its field of a cost."""
        parts = {"prefill_s": self.prefill, "decode_s": self.decode, **self.energy}
        return {name: paired for name, paired in parts.items() if paired is not None}

    def of(self, metric: Metric) -> Paired | None:
        """A linear metric, summed over its parts round by round; None if one of them was not measured."""
        counts = {part: count for part, count in metric.parts(self.scenario).items() if count}
        if not counts.keys() <= self.parts.keys():
            return None

        def whole(*samples: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(
                sum(count * one for count, one in zip(counts.values(), each, strict=True))
                for each in zip(*samples, strict=True)
            )

        measured = [self.parts[part] for part in counts]
        return Paired(
            whole(*(paired.control_samples for paired in measured)),
            whole(*(paired.other_samples for paired in measured)),
        )

    @property
    def latency(self) -> Paired:
        """The time until the last token of the whole batch.

        Raises ValueError where the scenario has decode steps and none was timed.
        """
        latency = self.of(LATENCY)
        if latency is None:
            raise ValueError(f"the latency of {self.scenario} needs decode steps, and no decode step was timed")
        return latency

    def and_then(self, later: "Comparison") -> "Comparison":
        """The rounds of both timings of the same two models; contention is their mean, by rounds."""
        decode = None if self.decode is None or later.decode is None else self.decode.and_then(later.decode)
        rounds = self.rounds + later.rounds
        contention = (self.contention * self.rounds + later.contention * later.rounds) / rounds
        energy = {name: later.energy[name] for name in self.energy.keys() & later.energy.keys()}
        energy = {name: self.energy[name].and_then(paired) for name, paired in energy.items()}
        prefill = self.prefill.and_then(later.prefill)
        return Comparison(self.scenario, prefill, decode, contention=contention, energy=energy)

    @property
    def rounds(self) -> int:
        return len(self.prefill.ratios)

    @property
    def spread(self) -> float:
        """The largest relative standard error of what was measured."""
        return max(paired.spread for paired in self.parts.values())


Heard = Callable[[int, float], None]
"""Gets the number of rounds so far and their seconds."""


def unheard(rounds: int, seconds: float) -> None:
    """Tell nobody."""


class Subject(Protocol):
    """A model that an engine holds ready to be timed."""

    def used_s(self) -> float:
        """CPU seconds that processes of its own, not this one, have used so far."""
        ...

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        ...

    def decode(self) -> float:
        """Seconds of one decode step of all sequences, with as much in the cache as half-way through an answer."""
        ...


def time_pair(
    control: Subject,
    other: Subject,
    scenario: Scenario,
    rounds: Rounds = ROUNDS,
    heard: Heard = unheard,
    meter: Meter | None = None,
) -> Comparison:
    """Time `other` against `control`, as `time_all` does."""
    return time_all([control, other], scenario, rounds, heard, meter)[1]


def time_all(
    subjects: Sequence[Subject],
    scenario: Scenario,
    rounds: Rounds = ROUNDS,
    heard: Heard = unheard,
    meter: Meter | None = None,
) -> tuple[Comparison, ...]:
    """Time each against the first, all in turns; the first answer is the first against itself. Decode steps are timed
    where the scenario generates more than one token.

    `heard` is called after each round. `meter`, if given, is read around each sample. Raises TimingError where the
    meter counts no joules, and what the passes raise.
    """
    phases = {"prefill": _Phase([subject.prefill for subject in subjects], meter)}
    if scenario.generated_tokens > 1:
        phases["decode"] = _Phase([subject.decode for subject in subjects], meter)
    started, watch = perf_counter(), Watch(scenario, [subject.used_s for subject in subjects])
    for done in count(1):
        for phase in phases.values():
            phase.take(reverse=done % 2 == 0)
        found = [_comparison(scenario, phases, index, meter is not None) for index in range(len(subjects))]
        spent_s = perf_counter() - started
        heard(done, spent_s)
        if rounds.enough(done, max(comparison.spread for comparison in found), spent_s):
            break
    contention = watch.contention()
    return tuple(replace(comparison, contention=contention) for comparison in found)


def _comparison(scenario: Scenario, phases: "Mapping[str, _Phase]", index: int, is_metered: bool) -> Comparison:
    energy = {f"{name}_j": phase.energy(index) for name, phase in phases.items()} if is_metered else {}
    return Comparison(scenario, *(phase.paired(index) for phase in phases.values()), energy=energy)


class _Phase:
    """The same pass of all models, and its samples so far."""

    def __init__(self, passes: Sequence[Callable[[], float]], meter: Meter | None):
        self._passes, self._meter = passes, meter
        # The first pass allocates and compiles, so the second gives the time of a pass.
        seconds = [min(run(), run()) for run in passes]
        sample_s = _SAMPLE_S if meter is None else meter.sample_s
        self._repeats = [math.ceil(min(_MOST_PASSES_PER_S * sample_s, sample_s / one_s)) for one_s in seconds]
        self._samples_s: list[tuple[float, ...]] = [() for _ in passes]
        self._samples_j: list[tuple[float, ...]] = [() for _ in passes]

    def take(self, reverse: bool) -> None:
        """One sample of each model: the median of its repeats. `reverse`: the last model first."""
        for index in sorted(range(len(self._passes)), reverse=reverse):
            run, repeats = self._passes[index], self._repeats[index]
            before_j = 0.0 if self._meter is None else self._meter.joules()
            self._samples_s[index] += (median(run() for _ in range(repeats)),)
            if self._meter is not None:
                self._samples_j[index] += (self._positive(self._meter.joules() - before_j) / repeats,)

    def paired(self, index: int) -> Paired:
        """The seconds of one model against the first's."""
        return Paired(self._samples_s[0], self._samples_s[index])

    def energy(self, index: int) -> Paired:
        """The same passes in joules; a sample is the mean of its repeats."""
        return Paired(self._samples_j[0], self._samples_j[index])

    @staticmethod
    def _positive(joules: float) -> float:
        if joules <= 0:
            raise TimingError(f"the energy meter counted {joules} J while a model ran")
        return joules
