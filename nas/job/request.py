"""A request: the sections of a job file together, and the rules between them.

Does not know how a job file is written (`nas/job/config.py`), what the parent looks like, nor what the text holds.
Imports no torch.
"""

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from blocklib.gguf_header import SUFFIX, is_gguf
from cost_models.errors import ScenarioError
from cost_models.scenario import ENGINES, USUAL_DTYPE, check_kv_cache
from nas.errors import JobError
from nas.job.compute import Compute
from nas.job.data import Data
from nas.job.paths import local_or_hub
from nas.job.sections import (
    Export,
    Measure,
    Ray,
    ScenarioSection,
    Score,
    Section,
    Solver,
    Space,
)
from nas.job.training import Distill, Heal, RoundTraining
from nas.job.units import did_you_mean
from nas.job.values import AbsolutePath, Budget, Flag, Name, NoneIfFalse, folder_of, wrong

EMBEDDED = "embedded"
_USUAL: Any = object()
"""What a key has that the job leaves out, where the default depends on other keys."""
_TIMED_IN_VLLM = ("decilm", "plain")
"""The formats that vLLM runs by its own code, which is what its times are of."""


def _parent(value: object, info: ValidationInfo) -> str:
    if value == EMBEDDED:
        return EMBEDDED
    parent = local_or_hub(value, folder_of(info))
    if os.path.isabs(parent) and not is_gguf(parent) and not Path(parent, "config.json").is_file():
        files = sorted(Path(parent).glob(f"*{SUFFIX}"))
        instead = " or ".join(f"parent: {file}" for file in files[:3])
        remedy = f"to take a GGUF file, write {instead}" if files else "give the folder of a checkpoint, a GGUF file"
        raise JobError(f"{parent} holds no config.json; {remedy}{'' if files else f', a hub id, or {EMBEDDED}'}")
    return parent


def _heal(value: object, info: ValidationInfo) -> object:
    """Healing moves a child of the parent's own shapes away from the parent by more than it brings back."""
    if value is not _USUAL:
        return value
    space = info.data.get("space")
    return None if space is not None and not space.has_shapes else Heal()


def checkpoint_of(parent: str) -> str:
    """The place of a request's parent: a folder, a GGUF file or a hub id."""
    return str(resources.files("nas").joinpath("embedded/parent")) if parent == EMBEDDED else parent


class Request(Section):
    """One search: parent, data, space, scenario, budget, and how to go about it.

    `parent` is `embedded`, the absolute path of a local checkpoint or GGUF file, or a hub id. `heal` None: the child
    is not healed, as by default where the shapes stay the parent's.
    `allow_remote_code`: a tokenizer that is code in the checkpoint may run, on this machine; no other code of it does.
    """

    name: Name
    parent: Annotated[str, BeforeValidator(_parent)]
    data: Data
    space: Space = Space()
    scenario: ScenarioSection = ScenarioSection()
    budget: Budget
    distill: Distill = Distill()
    score: Score = Score()
    measure: Measure = Measure()
    solver: Solver = Solver()
    heal: Annotated[Heal | None, NoneIfFalse, BeforeValidator(_heal)] = Field(default=_USUAL, validate_default=True)
    round: RoundTraining = RoundTraining()
    export: Export = Export()
    compute: Compute = Compute()
    ray: Ray = Ray()
    allow_remote_code: Flag = False
    home: Annotated[AbsolutePath, BeforeValidator(lambda value: default_home() if value is None else value)] = Field(
        default=None, validate_default=True
    )

    @property
    def checkpoint(self) -> str:
        """The place of the parent: a folder, a GGUF file or a hub id."""
        return checkpoint_of(self.parent)

    @property
    def engine(self) -> str:
        """The engine that serves the child, and that takes the times."""
        asked, serves_gguf = self.scenario, self.export.format == "gguf" and self.scenario.device == "cpu"
        return asked.engine or ("llama_cpp" if serves_gguf else "torch")

    @property
    def export_format(self) -> str:
        """The format in which the child is delivered."""
        return self.export.format or ("decilm" if self.engine == "vllm" else "hf")

    @property
    def dtype(self) -> str:
        """The type of the weights, by the engine's own name; a GGUF file that llama.cpp serves is timed as it is
        written."""
        delivered = self.export.precision if self.engine == "llama_cpp" and self.export.format == "gguf" else None
        return self.scenario.dtype or delivered or USUAL_DTYPE[self.engine]

    @property
    def gpus_per_task(self) -> float:
        """GPUs of each Ray task: what was asked, else one where the scenario is CUDA's."""
        asked = self.ray.gpus_per_task
        return float(self.scenario.device == "cuda") if asked is None else asked

    @property
    def heals_through_rounding(self) -> bool:
        """Whether a child's weights are rounded first, and then healed as they are stored."""
        return self.heal is not None and bool(self.space.precision) and self.heal.rounding == "through"

    def at_rate(self, rate: float) -> Self:
        """The same request, which says this learning rate of distillation; that of single kinds stays."""
        return self.model_copy(update={"distill": self.distill.model_copy(update={"learning_rate": rate})})

    def canonical(self) -> dict[str, Any]:
        """Every key with its value, defaults included, as plain JSON; as YAML it parses to an equal request."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _precisions(self) -> Self:
        if not self.space.precision:
            if self.space.untie:
                raise wrong("space.untie", "a head of its own is for a precision of its own; give space.precision, too")
            unused = "nothing is rounded without space.precision; leave out one, or give both"
            if self.round.tokens:
                raise wrong("round.tokens", unused)
            if self.heal is not None and self.heal.rounding != "after":
                raise wrong("heal.rounding", unused)
            if self.score.rounded != "predicted":
                raise wrong("score.rounded", unused)
            return self
        if self.engine != "llama_cpp" or self.export_format != "gguf":
            raise wrong(
                "space.precision",
                f"precisions of subblocks are stored in GGUF files and timed in llama.cpp, not in {self.engine} with "
                f"export.format {self.export_format}; give export.format: gguf and scenario.device: cpu",
            )
        if self.score.metric == "lm_loss" and self.score.rounded != "measured":
            raise wrong("score.rounded", "rises of the loss cannot be predicted; give measured, or score.metric: kl")
        names = ENGINES["llama_cpp"]
        unknown = [name for name in self.space.precision if name not in names] if self.space.precision != "all" else []
        if unknown:
            raise wrong("space.precision", f"{unknown[0]!r} is not known; {did_you_mean(unknown[0], names)}")
        for key, is_asked in (("space.pairs", self.space.pairs), ("space.parallel", self.space.parallel),
                              ("scenario.flash", self.scenario.flash)):  # fmt: skip
            if is_asked:
                raise wrong(key, "is not possible beside space.precision; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _products(self) -> Self:
        asked = self.compute.precision
        if asked == "tf32" and not self.gpus_per_task:
            raise wrong(
                "compute.precision",
                "tf32 is a type of NVIDIA's GPUs, and this search trains and scores on CPUs; give float32 or bfloat16, "
                "or ray.gpus_per_task: 1",
            )
        for key, is_asked in (("space.precision", self.space.precision), ("space.kv_cache", self.space.kv_cache)):
            if asked != "float32" and is_asked:
                raise wrong(
                    "compute.precision",
                    f"products in {asked} are rounded more coarsely than what {key} chooses between; give float32",
                )
        return self

    @model_validator(mode="after")
    def _keys_and_values(self) -> Self:
        given = self.scenario.kv_cache
        if given is not None and self.space.kv_cache:
            raise wrong("space.kv_cache", "scenario.kv_cache says which type it is; leave out one of the two")
        if self.scenario.flash is not None and self.space.kv_cache:
            raise wrong("scenario.flash", "is not possible beside space.kv_cache; leave out one of the two")
        asked = {"space.kv_cache": self.space.kv_cache, "scenario.kv_cache": () if given is None else (given,)}
        for key, name in ((key, name) for key, names in asked.items() for name in names):
            try:
                check_kv_cache(name, self.engine)
            except ScenarioError as error:
                raise wrong(key, str(error)) from error
        return self

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> Self:
        heal = self.heal
        if heal is None or heal.parts == 1:
            return self
        key = "heal.workers" if heal.workers > 1 else "heal.accumulate"
        if heal.workers > 1 and self.heals_through_rounding:
            raise wrong(key, "rounded weights are healed by one worker; give 1, or heal.rounding: after")
        batch = min(heal.batch, self.data.distillation_tokens // self.data.sequence_length)
        if batch % heal.parts:
            parts = f"{heal.workers} workers x heal.accumulate {heal.accumulate}"
            given = f"a batch of {batch} sequences has no equal parts for {parts}"
            raise wrong(key, f"{given}; give a heal.batch that is a multiple of {heal.parts}")
        return self

    @model_validator(mode="after")
    def _agreement(self) -> Self:
        if self.heals_through_rounding and self.heal is not None and self.heal.lora_rank is not None:
            raise wrong(
                "heal.lora_rank", "adapters are no part of what is rounded; leave it out, or give heal.rounding: after"
            )
        for key, tokens in _training_tokens(self):
            # Healing may pass over the text several times.
            if tokens is not None and tokens > self.data.distillation_tokens and key != "heal.tokens":
                most = f"give at most data.distillation_tokens, {self.data.distillation_tokens}, or raise that"
                raise wrong(key, f"{tokens} is more than there is to train on; {most}")
            if tokens is not None and 0 < tokens < self.data.sequence_length:
                least = f"give at least data.sequence_length, {self.data.sequence_length}"
                raise wrong(key, f"{tokens} is less than one sequence; {least}")
        fewest = 2 * self.round.batch * self.data.sequence_length
        if 0 < self.round.tokens < fewest:
            raise wrong("round.tokens", f"{self.round.tokens} is less than two batches; give at least {fewest}")
        if self.export_format == "plain" and not self.space.plain:
            raise wrong(
                "export.format",
                "plain carries children whose layers are all of one size; give space.plain: true, or export as hf",
            )
        if self.engine == "vllm" and self.export_format not in _TIMED_IN_VLLM:
            raise wrong(
                "export.format",
                f"vllm is timed on decilm's layers, and {self.export_format} does not run by that code; give decilm, "
                "or plain for layers of one size",
            )
        if any(limit.metric == "decode" for limit in self.budget) and self.scenario.generated_tokens == 1:
            raise wrong("budget.decode", "nothing is decoded after the first token; give scenario.generated_tokens: 2")
        types = ENGINES[self.engine]
        if self.scenario.dtype not in (None, *types):
            raise wrong(
                "scenario.dtype",
                f"the engine {self.engine} has no {self.scenario.dtype!r}; did you mean one of {', '.join(types)}?",
            )
        if self.export.precision is not None and self.export_format != "gguf":
            raise wrong("export.precision", f"format {self.export_format} has none; give export.format: gguf")
        if self.export.precision not in (None, *ENGINES["llama_cpp"]):
            names = ", ".join(ENGINES["llama_cpp"])
            raise wrong("export.precision", f"{self.export.precision!r} is not known; did you mean one of {names}?")
        if self.scenario.tensor_parallel > 1 and self.engine != "vllm":
            raise wrong(
                "scenario.tensor_parallel",
                f"only vllm divides layers among GPUs, not {self.engine}; give 1, or scenario.engine: vllm",
            )
        if self.export.precision not in (None, self.dtype) and self.engine == "llama_cpp":
            raise wrong(
                "export.precision",
                f"the file would hold {self.export.precision}, and scenario.dtype takes the times in {self.dtype}; "
                "give both the same, or leave out scenario.dtype",
            )
        if self.measure.whole_models is not None and self.scenario.flash is not None:
            raise wrong("measure.whole_models", "scenario.flash simulates a machine, so nothing is timed; leave it out")
        if self.solver.refine is not None and self.score.metric != "kl":
            raise wrong(
                "solver.refine", f"refining corrects sums of KL; give score.metric: kl, not {self.score.metric}"
            )
        return self


def default_home() -> str:
    return os.environ.get("NAS_HOME") or "~/.puzzle-nas"


def _training_tokens(request: Request) -> Iterator[tuple[str, int | None]]:
    yield "distill.tokens", request.distill.tokens
    for kind, training in request.distill.kinds.items():
        yield f"distill.kinds.{kind}.tokens", training.tokens
    yield "heal.tokens", request.heal.tokens if request.heal else None
    yield "round.tokens", request.round.tokens
