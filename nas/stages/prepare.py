"""Prepare a request: load the parent, tokenise the text, list the space, and make a key for everything.

A key is a digest of *what* and *under what*: two things with one key are the same thing, so what a key names is never
computed twice. It does no other work.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from blocklib.block import CACHE, SKIP, Choice
from blocklib.distil import Training
from blocklib.library import Library
from blocklib.parent import Parent, load_parent, own_steps
from cost_models.analytic import stored_bytes
from cost_models.engines.engines import describe
from cost_models.flash.flash import MemoryHierarchy
from cost_models.geometry import Geometry, all_geometries, geometries_of
from cost_models.scenario import Scenario
from db.tuning import TuneTrialRow
from nas.job.digest import digest
from nas.job.fusion_candidates import Matrix
from nas.job.learning_rate import LearningRate, resolved_rate
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.job.sections import Section
from nas.job.space import choices
from nas.stages.cost_table import CostTable, read_cost_table
from nas.stages.feasible import check_sizes
from nas.text.kept_tokens import TokenFolder, load_tokens
from nas.text.parent_folder import parent_folder, stored_in
from nas.text.token_files import digest_of
from nas.text.tokenizer import load_tokenizer, tokenizer_digest
from nas.text.tokens import Tokens

# Part of every key of built weights: raise it when the same settings would give other weights.
_BUILD_VERSION = 2
# The same of measured seconds.
_MEASURE_VERSION = 1
_HOW_TIMED = ("tolerance", "time_limit")
"""The keys of `measure` that decide how a time is taken, not which times are used."""
# The same of rounded weights.
_ROUND_VERSION = 1
# The same of scores.
_SCORE_VERSION = 1
CHECKED = 16
"""The sequences of the score text on which losses of subblocks are measured."""


@dataclass(frozen=True)
class Job:
    """The inputs of one search. Its request says the learning rate of distillation, whether or not the job does."""

    request: Request
    parent: Parent
    tokenizer: PreTrainedTokenizerBase
    tokens: Tokens
    scenario: Scenario
    hardware: str
    rate: LearningRate
    """That learning rate, and who says it."""
    table: CostTable | None = None
    """Costs that were measured elsewhere; None: they are measured here."""
    dependency: Matrix | None = None
    """How much each block depends on each earlier one, when that is measured."""

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        return choices(self.request.space, self.parent.shape, self.dependency, self.request.export_format)

    @property
    def hierarchy(self) -> MemoryHierarchy | None:
        """The machine that is simulated; None where one is timed."""
        asked = self.request.scenario.flash
        if asked is None:
            return None
        speeds = asked.dram_speed, asked.flash_speed
        return MemoryHierarchy(asked.dram, *speeds, asked.concurrent, asked.gamma, asked.policy)

    @property
    def is_timed_here(self) -> bool:
        """Whether times are taken, on this machine or a node; else they are simulated, or were measured elsewhere."""
        return self.hierarchy is None and self.table is None

    @property
    def wants_dependency(self) -> bool:
        """Whether the space joins blocks of low dependency, and the dependency is not measured yet."""
        joins = self.request.space.fuse is not None or self.request.space.parallel is not None
        return joins and self.dependency is None and self.parent.shape.layers > 1

    @cached_property
    def id(self) -> str:
        """The key of the search: it covers everything except the budget, the solver's settings, and the use of the
        answer."""
        under = self.request
        # A space without these is the same space as before there were such.
        unset = {name for name in ("plain", "precision", "untie", "kv_cache") if not getattr(under.space, name)}
        space = under.space.model_dump(mode="json", exclude=unset)
        score = under.score.model_dump(mode="json", exclude=set() if under.space.precision else {"rounded"})
        spaces = {"space": space, "distill": _plain(under.distill), "score": score}
        tokens = [self.tokens.digest(split) for split in ("calibration", "distillation", "score", "evaluation")]
        timed = under.measure.model_dump(mode="json", include=set(_HOW_TIMED))
        flash = under.scenario.flash
        machine: list[Any] = [self.hardware, None if flash is None else _plain(flash), timed]
        machine += [] if self.table is None else [self.table.digest]
        machine += [f"rounded {_ROUND_VERSION}"] if under.space.precision else []
        machine += ["two tables"] if under.space.precision and not self.parent.shape.tied else []
        machine += [] if under.measure.whole_models is None else [f"{under.measure.whole_models} whole models"]
        machine += self._multiplied
        versions = [_BUILD_VERSION, _MEASURE_VERSION, _SCORE_VERSION, transformers.__version__]
        under_what = [self.scenario.key(), *machine, *versions]
        return digest(self.parent.digest, tokens, spaces, *under_what)[:10]

    @property
    def _multiplied(self) -> list[str]:
        """The type of matrix products in the parts of keys that depend on it; float32 was the only one at first."""
        return [] if self.parent.products == "float32" else [self.parent.products]

    @cached_property
    def library(self) -> Library:
        return Library(self.home / "library" / self.parent.digest)

    @property
    def home(self) -> Path:
        return self.request.home

    @property
    def variants(self) -> tuple[Choice, ...]:
        """The choices that are not the parent's own."""
        return tuple(choice for choice in self.choices if not self.parent.own(choice))

    @cached_property
    def to_build(self) -> tuple[Choice, ...]:
        """The subblocks the library must hold before any is rounded, each once, in slot order."""
        found = {part.unrounded for choice in self.choices for part in choice.parts if not part.is_table}
        return _in_order(part for part in found if part.what != SKIP and not self.parent.own(part))

    @cached_property
    def to_round(self) -> tuple[Choice, ...]:
        """The parts that have a precision, each once, in slot order."""
        return _in_order({part for choice in self.choices for part in choice.parts if part.precision})

    @cached_property
    def caches(self) -> tuple[Choice, ...]:
        """The types of keys and values to choose from, behind all other choices; none where the scenario says it."""
        place = self.parent.shape.layers + bool(self.request.space.precision)
        return tuple(Choice(place, "cache", CACHE.at(name)) for name in self.request.space.kv_cache)

    @property
    def to_measure(self) -> tuple[Geometry, ...]:
        """The geometries to time, each once, the fixed part first. The parent's type of keys and values is always among
        theirs."""
        own = all_geometries(self.parent.architecture)
        return tuple(dict.fromkeys([*own, *geometries_of(self.choices, self.request.space.kv_cache)]))

    def kept_geometries(self, cache: Choice) -> tuple[Geometry, ...]:
        """Those that run otherwise with keys and values of this type than of the parent's, each once."""
        return tuple(part for part in geometries_of(self.choices, [cache.precision]) if part.cache)

    def at_rate(self, rate: float) -> "Job":
        """The same job at another learning rate of distillation."""
        return replace(self, request=self.request.at_rate(rate))

    @property
    def trains(self) -> bool:
        """Whether any subblock is trained."""
        return any(self.training(part).tokens for part in self.to_build)

    def training(self, part: Choice) -> Training:
        settings = self.request.distill.for_kind(part.subblocks[0][1].kind)
        assert settings.learning_rate is not None
        tokens = self.tokens.distillation.size if settings.tokens is None else settings.tokens
        return Training(
            tokens,
            settings.learning_rate,
            settings.warmup,
            settings.schedule,
            settings.weight_decay,
            settings.lora_rank,
        )

    def build_key(self, part: Choice) -> str:
        """The key of a part's weights in the library."""
        if part.precision:
            before = self.distillation_key(part)
            return digest(_ROUND_VERSION, self.parent.digest, before, str(part), self.tokens.digest("calibration"))
        settings = self.request.distill
        checked = digest_of(self.tokens.score[:CHECKED])
        text = [self.tokens.digest("calibration"), self.tokens.digest("distillation"), checked]
        under = [settings.batch, settings.least_squares, vars(self.training(part)), *self._multiplied]
        return digest(_BUILD_VERSION, self.parent.digest, str(part), text, under)

    def distillation_key(self, part: Choice) -> str | None:
        """The key of the weights that it has before they are rounded; None where these are the parent's own."""
        unrounded = part.unrounded
        return None if part.is_table or self.parent.own(unrounded) else self.build_key(unrounded)

    @cached_property
    def own_rounded(self) -> Mapping[int, tuple[Choice, ...]]:
        """By slot, the parent's own subblock there in each precision, the fewest bytes first."""
        found: dict[int, list[Choice]] = {}
        for choice in self.choices:
            if choice.precision and not choice.is_table and self.parent.own(choice.unrounded):
                found.setdefault(choice.first_slot, []).append(choice)
        held = partial(stored_bytes, shape=self.parent.shape, scenario=self.scenario)
        return {slot: tuple(sorted(choices, key=held)) for slot, choices in found.items()}

    @cached_property
    def to_predict(self) -> tuple[Choice, ...]:
        """The choices whose scores are predicted from a measured one of their slot: all in a precision but the parent's
        own in the coarsest."""
        if self.request.score.rounded == "measured":
            return ()
        rounded = [choice for choice in self.variants if choice.precision and not choice.is_table]
        return tuple(choice for choice in rounded if choice != self.own_rounded[choice.first_slot][0])

    @cached_property
    def to_score(self) -> tuple[Choice, ...]:
        """The choices whose scores are measured: all others, and the shapes of those that are predicted."""
        shapes = [choice.unrounded for choice in self.to_predict if not self.parent.own(choice.unrounded)]
        return tuple(dict.fromkeys([*(each for each in self.variants if each not in self._predicted), *shapes]))

    def score_key(self, choice: Choice) -> str:
        """The key of a choice's score, predicted or measured."""
        if choice.role == "cache":
            return digest(
                _SCORE_VERSION, self.parent.digest, str(choice), self.tokens.digest("score"), *self._multiplied
            )
        if choice in self._predicted:
            anchors = [self.measured_score_key(each) for each in self.own_rounded[choice.first_slot]]
            return digest("predicted", self.measured_score_key(choice), anchors)
        return self.measured_score_key(choice)

    @cached_property
    def _predicted(self) -> frozenset[Choice]:
        return frozenset(self.to_predict)

    def measured_score_key(self, choice: Choice) -> str:
        """The key of a choice's score as it is measured, of one that is predicted too."""
        built = [self.build_key(part) for part in self.library_parts(choice)]
        text = self.tokens.digest("score")
        return digest(_SCORE_VERSION, self.parent.digest, str(choice), built, text, *self._multiplied)

    def cost_key(self, geometry: Geometry) -> str:
        timed = {name: getattr(self.request.measure, name) for name in _HOW_TIMED}
        how = [_MEASURE_VERSION, timed, transformers.__version__]
        if self.hierarchy is not None:
            how = [_MEASURE_VERSION, vars(self.hierarchy), self.parent.digest, self.tokens.digest("calibration")]
        if self.table is not None:
            how = [_MEASURE_VERSION, self.table.digest]
        runs = self.parent.shape.sizes | own_steps(self.parent.config)
        return digest(runs, self.scenario.key(), self.hardware, how, str(geometry))

    def used_cost_key(self, geometry: Geometry) -> str:
        """The key of the cost that the search is solved on. Costs corrected by whole models are of one search."""
        key = self.cost_key(geometry)
        return key if self.request.measure.whole_models is None else digest(self.id, key)

    def library_parts(self, choice: Choice) -> tuple[Choice, ...]:
        """The parts of a choice whose weights come from the library. The others come from the parent, or have no
        weights."""
        return tuple(part for part in choice.parts if part.what != SKIP and not self.parent.own(part))

    def built_keys(self, choices: Iterable[Choice]) -> dict[Choice, str]:
        """The parts that these choices take from the library, with their keys there."""
        return {part: self.build_key(part) for choice in choices for part in self.library_parts(choice)}


def _in_order(parts: Iterable[Choice]) -> tuple[Choice, ...]:
    return tuple(sorted(parts, key=lambda part: (part.first_slot, part.span, str(part))))


def _plain(section: Section) -> dict[str, Any]:
    """As JSON takes it, defaults included."""
    return section.model_dump(mode="json")


def prepare(
    request: Request,
    hardware: str | None = None,
    tried: Callable[[str], Sequence[TuneTrialRow]] = lambda digest: (),
) -> Job:
    """Load what a request names. `hardware`: where times are taken, as `describe` names it; None: this machine. `tried`
    gives the learning rates that were tried for the parent of a digest.

    Raises a NasError that names the part that is wrong.
    """
    folder = parent_folder(request.checkpoint, request.home, code=request.allow_remote_code)
    tokenizer = load_tokenizer(folder, request.allow_remote_code)
    parent = load_parent(str(folder))
    notes = *stored_in(request.checkpoint), *parent.notes
    parent = replace(parent, notes=notes, products=request.compute.precision)
    check_sizes(request, parent.shape, parent.config)
    scenario, table = scenario_of(request), None
    if request.measure.table is not None:
        table = read_cost_table(request.measure.table)
        table.check_scenario(scenario, request.measure.table)
        table.check_shape(parent.shape.written, request.measure.table)
        hardware = table.hardware
    kept = TokenFolder(request.home / "tokens", tokenizer_digest(folder))
    tokens = load_tokens(request.data, tokenizer, parent.shape.vocabulary, kept)
    rate = resolved_rate(request.distill, tokens.distillation.size, tried(parent.digest))
    return Job(
        # Before anything has a key: a rate that was found makes the keys that the same rate in the job makes.
        request=request.at_rate(rate.value),
        parent=parent,
        tokenizer=tokenizer,
        tokens=tokens,
        scenario=scenario,
        hardware=hardware or describe(scenario),
        rate=rate,
        table=table,
    )
