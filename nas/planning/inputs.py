"""The inputs of a plan: a job, the sizes of its parent and a machine. Arithmetic only; no weight is read."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from blocklib.activations import cached_numbers
from blocklib.block import SKIP, Architecture, Block, Choice, Parallel, Role, Subblock
from blocklib.compute_dtype import converted_numbers
from blocklib.kinds import choice_parameters, kind_of, parameters, parent_architecture, parent_block
from blocklib.model import PuzzleNasConfig, PuzzleNasLayer
from blocklib.parent import child_config, own_shape
from blocklib.resident import share_of
from blocklib.shape import Shape
from cost_models.analytic import architecture_cost
from cost_models.cost import Cost
from cost_models.scenario import Scenario
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.job.sections import Space
from nas.job.space import choices
from nas.planning.disk import leaves_room
from nas.planning.hardware import Hardware
from nas.planning.need import Amount, Tasks
from nas.planning.task_ranges import by_count, by_layers, prefix_tokens

_PARENT = "the parent, as it is stored"
_OF_THE_PARENT = ("shape", "parent_parameters", "_projections", "_sizes", "_by_space")
_OF_THE_SPACE = ("choices", "to_build", "built_alike", "to_score")
FLOAT32 = 4
"""Bytes of a number in the type that all is trained in, and that all but products computes in."""
_TOKEN_BYTES = 4


@dataclass(frozen=True, eq=False)
class PlanInputs:
    """`config` is the parent's, as our model has it; `stored_bytes` is the mean of its numbers in its files."""

    request: Request
    config: PuzzleNasConfig
    scenario: Scenario
    stored_bytes: float
    machine: Hardware

    @cached_property
    def shape(self) -> Shape:
        return own_shape(self.config)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """Every option, the parent's own among them; of runs and windows all, since dependency is measured later."""
        return choices(self.request.space, self.shape, format=self.request.export_format)

    @cached_property
    def to_build(self) -> tuple[Choice, ...]:
        """The subblocks that the library must hold before any is rounded, each once."""
        parts = {
            part.unrounded if part.precision else part
            for choice in self.choices
            for part in choice.parts
            if not part.is_table
        }
        built = [part for part in parts if part.what != SKIP and not self.is_own(part)]
        return tuple(sorted(built, key=lambda part: (part.first_slot, part.span, str(part))))

    @cached_property
    def built_alike(self) -> tuple[tuple[Choice, int], ...]:
        """One of each kind and size of them, and in how many places it stands."""
        first = {(part.role, part.what): part for part in reversed(self.to_build)}
        counts = Counter((part.role, part.what) for part in self.to_build)
        return tuple((part, counts[known]) for known, part in first.items())

    @cached_property
    def to_score(self) -> tuple[Choice, ...]:
        """The options whose scores are measured. With precisions, these are the shapes, and the parent's own subblocks
        in one precision; others are predicted from them, unless the job wants them measured."""
        options = [choice for choice in self.choices if not self.is_own(choice) and not choice.is_table]
        if not self.request.space.precision or self.request.score.rounded == "measured":
            return tuple(options)
        rounded = {choice.first_slot: choice for choice in options if self.is_own(choice.unrounded)}
        shapes = [choice.unrounded for choice in options if not self.is_own(choice.unrounded)]
        return tuple(dict.fromkeys([*shapes, *rounded.values()]))

    def is_own(self, choice: Choice) -> bool:
        own = parent_block(self.shape)
        return choice.what in {"attention": (own.attention,), "ffn": (own.ffn,), "block": (own,)}.get(choice.role, ())

    @cached_property
    def needs_whole_batches(self) -> bool:
        """Whether an option is trained on whole batches alone."""
        parts = [part for part in self.to_build if isinstance(part.what, Subblock)]
        return any(kind_of(part.role, part.what).needs_whole_batches for part in parts)  # type: ignore[arg-type]

    @cached_property
    def parent_parameters(self) -> int:
        return parameters(parent_architecture(self.shape), self.shape)

    @cached_property
    def served(self) -> Cost:
        """The parent in the form that the scenario's engine loads."""
        return architecture_cost(parent_architecture(self.shape), self.shape, self.scenario)

    @property
    def layer_parameters(self) -> float:
        return (self.parent_parameters - self.shape.fixed_parameters) / self.shape.layers

    @property
    def ffn_parameters(self) -> int:
        return self.shape.ffn_matrices * self.shape.hidden * self.shape.ffn_width

    @property
    def head_parameters(self) -> int:
        return self.shape.vocabulary * self.shape.hidden

    @property
    def copied_bytes(self) -> int:
        """Bytes of a number in the copy that products make of what is in float32; 0: they read it as it is."""
        return 2 if self.request.compute.precision == "bfloat16" else 0

    @property
    def product_bytes(self) -> int:
        """Bytes of a number as products of a pass read it."""
        return self.copied_bytes or FLOAT32

    @property
    def head_bytes(self) -> int:
        """The part of it that is there in the type of products, where the parent is stored otherwise."""
        return self.converted_bytes(converted_numbers(self.head_parameters))

    def converted_bytes(self, numbers: float) -> int:
        """A copy of so many numbers of the parent's matrices in the type of products; 0 where they are stored so."""
        return 0 if self.is_stored_as_computed else int(numbers * self.product_bytes)

    @property
    def is_stored_as_computed(self) -> bool:
        """Whether the matrices are, and not single norms alone."""
        return self.product_bytes * 0.9 < self.stored_bytes < self.product_bytes * 1.1

    @property
    def parent_bytes(self) -> float:
        return self.parent_parameters * self.stored_bytes

    @property
    def is_mapped(self) -> bool:
        """Whether the layers of a parent stay in main memory, and go to a GPU one by one (`blocklib/resident.py`)."""
        return not self.machine.is_cpu and self.parent_bytes > share_of(self.machine.device_bytes)

    @property
    def moved_by_a_pass(self) -> float:
        """The bytes that go to a GPU where its layers run, in one pass of a parent that stays in main memory."""
        return (self.parent_parameters - self.shape.fixed_parameters) * self.stored_bytes * self.is_mapped

    @property
    def parent_once(self) -> tuple[Amount, ...]:
        """The parent where all workers map the same files; GPUs hold one each, or its embedding and head."""
        if self.is_mapped:
            return (Amount("the parent's embedding and head", self.shape.fixed_parameters * self.stored_bytes),)
        return () if self.parent_each else (Amount(_PARENT, self.parent_bytes),)

    @property
    def parent_main(self) -> tuple[Amount, ...]:
        return (Amount("the parent, mapped from its files", self.parent_bytes),) if self.is_mapped else ()

    @property
    def text(self) -> Amount:
        """The text that trains: in a file, which processes map and which stays in main memory once it is read."""
        tokens = self.in_sequences(self.request.data.distillation_tokens)
        return Amount("the training text, mapped from its file", tokens * _TOKEN_BYTES, "data.distillation_tokens")

    def activations(self, whole: bool) -> Amount:
        """The parent's on the text that trains, or on its head alone, in files."""
        data = self.request.data
        tokens = data.distillation_tokens if whole else data.calibration_tokens
        key = "data.distillation_tokens" if whole else "data.calibration_tokens"
        held = self.activation_bytes(self.in_sequences(tokens))
        return Amount("the parent's activations on the training text", held, key)

    def caches_training(self, groups: Sequence[Sequence[Choice]]) -> bool:
        """Whether the parent runs over all of the text that trains beforehand: where that is less work than what each
        group would do for itself, and the disk holds the activations."""
        text = self.in_sequences(self.request.data.distillation_tokens)
        alone = prefix_tokens(groups, max(map(self.tokens_of, self.to_build)), self.shape.layers)
        return alone >= text and leaves_room(self.activation_bytes(text), self.machine.disk_bytes)

    def activation_bytes(self, tokens: int) -> int:
        return cached_numbers(self.shape.layers, self.shape.hidden, tokens) * FLOAT32

    @property
    def parent_each(self) -> tuple[Amount, ...]:
        """The parent where every worker has a copy: what is stored as it is computed on is copied."""
        copied = self.is_stored_as_computed and not self.is_mapped
        return (Amount(_PARENT, self.parent_bytes),) if copied else ()

    @property
    def device(self) -> torch.device:
        """The device that trains and scores."""
        return torch.device("cpu" if self.machine.is_cpu else "cuda")

    @property
    def sequence(self) -> int:
        return self.request.data.sequence_length

    @property
    def places(self) -> int:
        """How many tasks that train or score run at once."""
        asked = self.request.ray.cpus_per_task if self.machine.is_cpu else self.request.gpus_per_task
        return max(1, int(self.machine.devices // asked))

    def groups(self, choices: Sequence[Choice], work: Callable[[Choice], float]) -> list[list[Choice]]:
        """The choices of each task, as a stage divides them where the job says nothing else."""
        if asked := self.request.ray.layers_per_task:
            return by_count(choices, asked)
        return by_layers(choices, self.places, work)

    def tasks(self, count: int, alone: bool = False) -> Tasks:
        """So many tasks, as Ray places them; `alone`: one that has a device, and all cores, for itself."""
        share = self.request.gpus_per_task
        per_device = 1 if alone or self.machine.is_cpu or share >= 1 else int(1 // share)
        cores = None if alone else self.request.ray.cpus_per_task
        return Tasks(count, 1 if alone else self.places, per_device, cores, self.places)

    def value(self, key: str) -> Any:
        """The job's value of a key; None also where its section is not there."""
        found: Any = self.request
        for name in key.split("."):
            found = getattr(found, name, None)
        return found

    def tokens_of(self, part: Choice) -> int:
        """The tokens that a subblock is trained on."""
        assert isinstance(part.what, Subblock)
        kind = part.what.kind
        if kind not in self._tokens:
            asked = self.request.distill.for_kind(kind).tokens
            whole = self.in_sequences(self.request.data.distillation_tokens)
            self._tokens[kind] = whole if asked is None else asked
        return self._tokens[kind]

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {}

    def in_sequences(self, tokens: int) -> int:
        return tokens - tokens % self.sequence

    def projection(self, part: Choice) -> tuple[int, int]:
        """The inputs and outputs of the matrix that least squares fits of a subblock; none where it has none."""
        key = part.role, part.what
        if key not in self._projections:
            self._projections[key] = self._projection(part)
        return self._projections[key]

    def _projection(self, part: Choice) -> tuple[int, int]:
        assert isinstance(part.what, Subblock)
        name = kind_of(part.role, part.what).output_projection
        if name is None:
            return 0, 0
        block = Block(part.what, SKIP) if part.role == "attention" else Block(SKIP, part.what)
        with torch.device("meta"):
            config = child_config(self.config, Architecture((block,)), self.shape)
            module = PuzzleNasLayer(config.per_layer_config[0], 0).get_submodule(name)
        rows, columns = module.get_parameter("weight").shape
        return (columns, rows) if isinstance(module, torch.nn.Linear) else (rows, columns)

    @cached_property
    def _projections(self) -> dict[tuple[Role, Subblock | Block | Parallel], tuple[int, int]]:
        return {}

    def size(self, choice: Choice) -> int:
        key = choice.role, choice.what
        if key not in self._sizes:
            self._sizes[key] = choice_parameters(choice, self.shape)
        return self._sizes[key]

    @cached_property
    def _sizes(self) -> dict[tuple[Role, Subblock | Block | Parallel], int]:
        return {}

    @property
    def child_parameters(self) -> float:
        """At most: as many as a limit on parameters leaves, else the parent's."""
        own = float(self.parent_parameters)
        return min([own, *(limit.absolute(own) for limit in self.request.budget if limit.metric == "parameters")])

    @property
    def child_layers_bytes(self) -> float:
        """Those of a child's layers before it is healed, as if all were the library's, in float32."""
        return max(0.0, self.child_parameters - self.shape.fixed_parameters) * FLOAT32

    @property
    def child_bytes(self) -> float:
        """The same with its tables, as the parent stores them."""
        return self.shape.fixed_parameters * self.stored_bytes + self.child_layers_bytes

    def changed(self, changes: Mapping[str, int | str | None]) -> "PlanInputs":
        """The same with other values of keys of the job, such as `heal.batch`."""
        request = self.request
        for key, value in changes.items():
            request = _with(request, key.split("."), value)
        changed = replace(self, request=request, scenario=scenario_of(request))
        # A large parent has thousands of options, and many changes leave them what they are.
        alike = self._by_space.setdefault(request.space, changed)
        for source, names in ((self, _OF_THE_PARENT), (alike, _OF_THE_SPACE)):
            vars(changed).update({name: vars(source)[name] for name in names if name in vars(source)})
        return changed

    @cached_property
    def _by_space(self) -> "dict[Space, PlanInputs]":
        """Inputs that differ from these, one for each space."""
        return {self.request.space: self}

    @staticmethod
    def pass_flops(parameters: float, tokens: float) -> float:
        """A forward pass of so many parameters that multiply: two operations for each and each token. Products of
        attention with itself are left out."""
        return 2.0 * parameters * tokens


def _with(section: Any, path: Sequence[str], value: int | str | None) -> Any:
    name, *rest = path
    changed = _with(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: changed})
