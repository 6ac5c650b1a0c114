"""The sections of a job file: every key, what fits it, and its default. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from nas.errors import JobError
from nas.job.units import did_you_mean
from nas.job.values import (
    AbsolutePath,
    AttentionOption,
    Bytes,
    Caches,
    Count,
    FfnOption,
    Flag,
    Fraction,
    NoneIfFalse,
    NotNegative,
    Positive,
    Precisions,
    Seconds,
    distinct,
    wrong,
)
from solvers.exact.memory import MEMORY_BYTES, checked_memory

_SPREAD_PER_TOLERANCE = 5.0
"""A time whose standard error is so many times the tolerance that was asked for is known to be bad."""
_CONTENTION_PER_TOLERANCE = 25.0
"""At the default tolerance a quarter of the cores: on two of them about what one other busy program takes."""


class Section(BaseModel):
    """Keys and values under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise JobError(f"should be keys and values, not {value!r}; known: {', '.join(cls.model_fields)}")
        for key in value:
            if key not in cls.model_fields:
                raise wrong(str(key), f"unknown key; {did_you_mean(str(key), cls.model_fields)}")
        return value


class FuseSection(Section):
    """Runs of 2 to `longest` FFNs fused into one.

    The parts read through one norm: each part's own folded into its weights (`fold`), or the run's last (`last`).
    `share` None: every run is an option; else those of blocks that hardly depend on each other, that share of all pairs
    counting as little, each such stretch's last FFN left out unless `keep_last` is false. `widest`: the hidden channels
    a run may have.
    """

    longest: Annotated[int, Field(ge=2, strict=True)] = 3
    norm: Literal["fold", "last"] = "fold"
    share: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    keep_last: Flag = True
    widest: Count | None = None


_OF_PLAIN: dict[str, object] = {"attention": ("kv50%",), "ffn": ("75%", "50%", "25%"), "fuse": None}
"""The defaults of a space whose layers are all of one size."""


class Space(Section):
    """The options beside the parent's own, which is always one of them.

    `drop_blocks`: whole layers may go, scored as a whole. `pairs`: a layer's attention and FFN are scored together.
    `parallel`: windows of so many layers may read one input and add up (FFN Fusion, appendix B). `plain`: the layers
    that are kept have one number of KV heads and one FFN width, as in any checkpoint of the parent's family; their
    precisions may differ.
    `precision`: every subblock, and embedding and head, may be stored in each of these; `all`: in each that the engine
    runs with rows of these lengths; empty: everything is stored as the scenario says. `untie`: the child has a head of
    its own where the parent's is the embedding, so that each has its own precision.
    `kv_cache`: the keys and values of all layers may be in any one of these types; empty: they are as the scenario
    says.
    """

    attention: Annotated[tuple[AttentionOption, ...], AfterValidator(distinct)] = Field(
        default=("kv50%", "linear", "skip"), validate_default=True
    )
    ffn: Annotated[tuple[FfnOption, ...], AfterValidator(distinct)] = Field(
        default=("75%", "50%", "25%", "linear", "skip"), validate_default=True
    )
    fuse: Annotated[FuseSection | None, NoneIfFalse] = FuseSection()
    drop_blocks: Flag = True
    pairs: Flag = False
    parallel: Annotated[int, Field(ge=2, strict=True)] | None = None
    plain: Flag = False
    precision: Precisions = ()
    untie: Flag = False
    kv_cache: Caches = ()

    @property
    def has_shapes(self) -> bool:
        """Whether anything but the parent's own shapes may be chosen."""
        return bool(self.attention or self.ffn or self.fuse or self.drop_blocks or self.parallel)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_plain(cls, value: object) -> object:
        return _OF_PLAIN | value if isinstance(value, dict) and value.get("plain") is True else value

    @model_validator(mode="after")
    def _of_one_size(self) -> Self:
        options = {"attention": (self.attention, "kv"), "ffn": (self.ffn, "ffn")}
        wrongs = [f"{key}: {one}" for key, (named, kind) in options.items() for one in named if one.kind != kind]
        wrongs += [key for key in ("fuse", "parallel") if getattr(self, key) is not None]
        if self.plain and wrongs:
            taken = "takes only numbers of KV heads (kv50%, kv2), FFN widths (50%, ffn512), drop_blocks and precision"
            raise wrong("plain", f"a plain child {taken}; leave out {', '.join(wrongs)}, or plain")
        return self

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.has_shapes or self.precision or self.kv_cache):
            raise JobError("leaves nothing to choose; name at least one option under attention, ffn or precision")
        return self


class Flash(Section):
    """A machine with `dram` bytes for the model, which reads the rest from Flash as tokens need it, batches of one.

    Speeds are bytes per second. `concurrent`: DRAM and Flash are read at the same time. `gamma` and `policy` are of
    cache-aware masking (DIP-CA, arXiv 2412.01380): what is not cached counts `gamma` times its magnitude; 1 is plain
    DIP, and what scores are taken with.
    """

    dram: Bytes
    dram_speed: Bytes
    flash_speed: Bytes
    concurrent: Flag = False
    gamma: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    policy: Literal["lfu", "lru", "belady", "none"] = "lfu"


class ScenarioSection(Section):
    """The conditions the child will be served under. `threads` None: every core. The worker picks the GPU.

    `engine` None: llama.cpp where the child is exported as GGUF and served on a CPU, else torch. `dtype` is the
    engine's own name for the type of the weights; None: its usual one. `tensor_parallel`: the GPUs among which vLLM
    divides each layer. `kv_cache` is the engine's own name for the type of keys and values, where it has a choice;
    None: its usual one. `flash` None: times are measured; else they are simulated, of a machine whose DRAM does not
    hold the model.
    """

    device: Literal["cpu", "cuda", "mps", "xpu"] = "cpu"
    engine: Literal["torch", "torch_compile", "llama_cpp", "vllm"] | None = None
    dtype: str | None = None
    batch: Count = 16
    prompt_tokens: Count = 256
    generated_tokens: Count = 1
    threads: Count | None = None
    tensor_parallel: Count = 1
    kv_cache: str | None = None
    flash: Flash | None = None

    @model_validator(mode="after")
    def _flash_is_for_one(self) -> Self:
        if self.flash is not None and self.batch != 1:
            raise wrong("batch", f"{self.batch} sequences at once; scenario.flash simulates one: give 1")
        return self


class Score(Section):
    """`kl`: of the parent's next-token distribution to the child's. `lm_loss`: the rise of the loss on the text.

    `rounded`: the scores of subblocks in each precision are all measured; or predicted from a measured one of their
    slot; or predicted, and those that the answer stands on measured, until the answer stands on measured ones alone.
    """

    metric: Literal["kl", "lm_loss"] = "kl"
    rounded: Literal["predicted", "checked", "measured"] = "predicted"


class Measure(Section):
    """How long a stack of one geometry is timed: until its time relative to the parent's is known to `tolerance`, a
    standard error, and for at most `time_limit` seconds. The assembled child is given three times that.

    A time that would put a larger standard error than `worst_spread` into a model full of it (as a share of the
    parent's time), or was taken while other programs kept more than `worst_contention` of the cores needed busy, is not
    used for a budget that limits times, but taken again, all such times together for up to `patience`; so is a child's
    that leaves undecided whether it is within the budget. None: in proportion to the tolerance.

    `table`: nothing is timed; the seconds are those of a file that `nas measure` wrote on the machine that serves.
    `whole_models`: so many random architectures are timed whole. Half of them correct the times of parts, if that
    brings the sums closer to the other half. None: the parts' own times are used.
    """

    table: AbsolutePath | None = None
    whole_models: Annotated[int, Field(ge=4, strict=True)] | None = None
    tolerance: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.01
    time_limit: Seconds = 20.0
    worst_spread: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = None
    worst_contention: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    patience: Seconds = 180.0

    @model_validator(mode="after")
    def _timed_here(self) -> Self:
        if self.table is not None and self.whole_models is not None:
            raise wrong("whole_models", "nothing is timed where measure.table gives the times; leave one of them out")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.worst_spread is not None and self.worst_spread < self.tolerance:
            given = f"{self.worst_spread} is less than the error at which timing stops"
            raise wrong("worst_spread", f"{given}; give at least measure.tolerance, {self.tolerance}")
        return self

    @property
    def spread_allowed(self) -> float:
        return _SPREAD_PER_TOLERANCE * self.tolerance if self.worst_spread is None else self.worst_spread

    @property
    def contention_allowed(self) -> float:
        """At most 1: all of the cores, which is any."""
        asked = _CONTENTION_PER_TOLERANCE * self.tolerance if self.worst_contention is None else self.worst_contention
        return min(1.0, asked)


class Solver(Section):
    """`gap`: how far from the optimum an answer may be, as a share of its score. `time_limit` is in seconds, `memory`
    in bytes, what a run of the exact solver may hold.

    `engine` is the MIP solver for what prices and partial tilings do not settle. `refine`: so many whole architectures
    are measured to go past the sum of scores; None: the sum's best is the answer.
    """

    gap: Fraction = 1e-6
    time_limit: Seconds = 60.0
    memory: Annotated[Bytes, AfterValidator(checked_memory)] = MEMORY_BYTES
    engine: Literal["highs", "cbc"] = "highs"
    refine: Count | None = None


class Export(Section):
    """`format` None: decilm where vLLM serves the child, else hf. `precision` is the type of most matrices of a GGUF
    file; None: what the scenario serves in, if llama.cpp serves, else f16. `out` None: a folder of the trial's own
    under `home`."""

    format: Literal["hf", "decilm", "gguf", "plain"] | None = None
    precision: str | None = None
    out: AbsolutePath | None = None


class Ray(Section):
    """`address` None: a local Ray, started and stopped by us. `layers_per_task` None: as keeps every CPU busy.

    `gpus_per_task` None: one where the scenario is CUDA's, none where it is not.
    """

    address: str | None = None
    layers_per_task: Count | None = None
    cpus_per_task: Positive = 1
    gpus_per_task: NotNegative | None = None
