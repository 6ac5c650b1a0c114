"""A job file means one request, and every mistake in it is named with its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import EMBEDDED
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from blocklib.block import SKIP, Subblock
from blocklib.families import shape_of
from blocklib.kinds import parent_architecture
from blocklib.parent import child_config
from cost_models.metrics import METRICS
from nas.errors import JobError
from nas.export.formats import check_format
from nas.job.config import Request, load, parse, served_by, template
from nas.job.data import HubDataset
from nas.job.sections import FuseSection
from nas.job.space import choices
from nas.job.units import Limit, format_quantity, parse_budget, parse_limit, parse_quantity
from nas.job.values import Share

SMALLEST = "parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\n"


def job(**sections: object) -> str:
    """The smallest job with some of its sections replaced."""
    return yaml.safe_dump({**yaml.safe_load(SMALLEST), **sections})


def mistake(text: str, where: str = "job.yaml") -> str:
    with pytest.raises(JobError) as caught:
        parse(text, where)
    return str(caught.value)


# --- what a job means -----------------------------------------------------------------------------------------------


def test_the_smallest_job_takes_every_default() -> None:
    request = parse(SMALLEST, "somewhere/stories.yaml")
    assert request.name == "stories"
    assert request.budget == (Limit("latency", 0.6, relative=True),)
    assert request.space.attention == (Share("kv", 0.5), Subblock("linear"), SKIP)
    assert request.space.ffn == (Share("ffn", 0.75), Share("ffn", 0.5), Share("ffn", 0.25), Subblock("linear"), SKIP)
    assert request.space.fuse == FuseSection(longest=3, norm="fold")
    assert request.solver.time_limit == 60.0
    assert request.heal is not None


def test_the_template_is_the_smallest_job_written_out() -> None:
    """Every key it shows is one there is, every key there is is shown, and its values are the defaults."""
    written, smallest = parse(template(), "job.yaml"), parse(SMALLEST, "job.yaml")
    sizes = {"distillation_tokens": 32_768, "score_tokens": 8_192, "evaluation_tokens": 16_384}
    smaller = {
        "data": smallest.data.model_copy(update=sizes),
        "space": smallest.space.model_copy(update={"ffn": smallest.space.ffn[1:], "fuse": FuseSection(longest=2)}),
        "measure": smallest.measure.model_copy(update={"time_limit": 5.0, "worst_contention": 0.5, "patience": 120.0}),
    }
    assert written == smallest.model_copy(update=smaller)
    shown, known = yaml.safe_load(template()), written.canonical()
    assert list(shown) == list(known)
    for section, keys in known.items():
        if isinstance(keys, dict) and section != "data":
            assert list(shown[section]) == list(keys), section


def test_the_child_is_delivered_in_a_form_that_the_engine_of_its_times_runs() -> None:
    def delivered(**sections: object) -> str:
        return parse(job(**sections), "job.yaml").export_format

    in_vllm = {"scenario": {"engine": "vllm"}}
    assert delivered() == delivered(scenario={"engine": "torch"}) == "hf"
    assert delivered(export={"format": "decilm"}) == delivered(**in_vllm) == "decilm"
    assert delivered(**in_vllm, space={"plain": True}, export={"format": "plain"}) == "plain"
    assert served_by(parse(SMALLEST, "job.yaml"), "vllm", None).export_format == "decilm"


def test_how_bad_a_time_may_be_is_in_proportion_to_the_tolerance_unless_it_is_said() -> None:
    def measured(**asked: object) -> tuple[float, float]:
        measure = parse(yaml.safe_dump(yaml.safe_load(SMALLEST) | {"measure": asked}), "job.yaml").measure
        return measure.spread_allowed, measure.contention_allowed

    assert measured() == pytest.approx((0.05, 0.25))
    assert measured(tolerance=0.02) == pytest.approx((0.1, 0.5))
    assert measured(tolerance=0.2) == pytest.approx((1.0, 1.0)), "more than all cores cannot be taken"
    assert measured(worst_spread=0.3, worst_contention=0.1) == pytest.approx((0.3, 0.1))
    with pytest.raises(
        JobError, match=r"measure\.worst_spread: 0\.005 is less than the error at which timing stops; give at least"
    ):
        measured(worst_spread=0.005)


def test_the_jobs_among_the_examples_are_right() -> None:
    request = load(Path(__file__).parents[1] / "examples/llama_1b_gpu.yaml")
    assert (request.name, request.export_format) == ("llama-1b", "decilm")
    llama = LlamaConfig(num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8, head_dim=64)
    shape = shape_of(llama)
    check_format("decilm", choices(request.space, shape), child_config(llama, parent_architecture(shape), shape))


def test_the_job_for_a_real_model_reads_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wikitext2-valid.txt", "shakespeare.txt"):
        (tmp_path / name).write_text("words")
    monkeypatch.setenv("SMOLLM2", str(EMBEDDED))
    monkeypatch.setenv("TEXT", str(tmp_path))
    request = load(Path(__file__).parents[1] / "examples/smollm2_cpu.yaml")
    assert (request.name, request.parent) == ("smollm2-cpu", str(EMBEDDED))


def test_a_request_is_frozen() -> None:
    request = parse(SMALLEST, "job.yaml")
    with pytest.raises(ValueError, match="frozen"):
        request.scenario.batch = 3  # type: ignore[misc]


def test_false_leaves_a_stage_out() -> None:
    request = parse(job(heal=False, space={"fuse": False}), "job.yaml")
    assert request.heal is None
    assert request.space.fuse is None


def test_options_are_shares_of_the_parents_or_sizes() -> None:
    space = parse(job(space={"attention": ["kv2", "kv12.5%"], "ffn": ["ffn50%", "ffn512"]}), "job.yaml").space
    assert space.attention == (Subblock("kv", "2"), Share("kv", 0.125))
    assert space.ffn == (Share("ffn", 0.5), Subblock("ffn", "512"))


def test_a_kind_may_be_distilled_otherwise() -> None:
    kinds = {"linear": {"learning_rate": 1e-2, "tokens": 0}, "fuse": {"schedule": "constant"}}
    distill = parse(job(distill={"learning_rate": 1e-3, "kinds": kinds}), "job.yaml").distill
    assert (distill.for_kind("linear").learning_rate, distill.for_kind("linear").tokens) == (1e-2, 0)
    assert distill.for_kind("fuse_last").schedule == "constant"
    assert (distill.for_kind("kv").learning_rate, distill.for_kind("kv").schedule) == (1e-3, "cosine")


def test_exponents_without_a_point_are_numbers() -> None:
    assert parse(SMALLEST + "solver: {gap: 1e-3, time_limit: 2 min}", "job.yaml").solver.gap == 1e-3


# --- paths ----------------------------------------------------------------------------------------------------------


def test_paths_start_at_the_job_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    (tmp_path / "corpus" / "deep").mkdir(parents=True)
    for name in ("corpus/b.txt", "corpus/a.txt", "corpus/deep/c.txt", "odd[1].txt"):
        (tmp_path / name).write_text("text")
    monkeypatch.setenv("PUZZLE_TEST_OUT", str(tmp_path / "child"))
    job_file = tmp_path / "job.yaml"
    train = ["odd[1].txt", "corpus/*.txt", "corpus/**/*.txt"]
    sections = {"export": {"out": "$PUZZLE_TEST_OUT/x"}, "home": "~/here"}
    job_file.write_text(job(parent="./llama", data={"train": train, "evaluation": "corpus/a.txt"}, **sections))
    monkeypatch.chdir("/")
    request = load(job_file)
    assert request.parent == request.checkpoint == str(tmp_path / "llama")
    names = ("odd[1].txt", "corpus/a.txt", "corpus/b.txt", "corpus/deep/c.txt")
    assert request.data.train == tuple(tmp_path / name for name in names)
    assert request.data.evaluation == (tmp_path / "corpus/a.txt",)
    assert request.export.out == tmp_path / "child" / "x"
    assert request.home == Path.home() / "here"


def test_a_parent_or_dataset_that_is_not_here_is_a_hub_id(tmp_path: Path) -> None:
    where = str(tmp_path / "job.yaml")
    request = parse(job(parent="meta/Llama-3.1-8B", data={"train": {"dataset": "org/stories", "split": "t"}}), where)
    assert request.parent == "meta/Llama-3.1-8B"
    assert request.data.train == HubDataset(dataset="org/stories", split="t")


def test_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HOME", str(tmp_path))
    assert parse(SMALLEST, "job.yaml").home == tmp_path
    monkeypatch.delenv("NAS_HOME")
    assert parse(SMALLEST, "job.yaml").home == Path.home() / ".puzzle-nas"


# --- there and back -------------------------------------------------------------------------------------------------


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    metric = draw(st.sampled_from(sorted(METRICS)))
    relative = draw(st.booleans())
    greatest = 5.0 if metric == "throughput" else 1.0
    # A percentage with as many digits as anyone writes; an absolute value may be any float.
    share = st.integers(1, int(greatest * 1e6)).map(lambda millionths: millionths / 1e4 / 100)
    return Limit(metric, draw(share if relative else st.floats(1e-9, 1e15)), relative)


@given(limits())
def test_a_limits_text_is_the_limit(limit: Limit) -> None:
    assert parse_limit(limit.metric, limit.text) == limit
    assert parse_budget(f"{limit.metric}={limit.text}") == (limit,)


@settings(max_examples=40)
@given(st.lists(limits(), min_size=1, unique_by=lambda limit: limit.metric), st.integers(2, 99), st.floats(1e-6, 0.5))
def test_a_canonical_request_parses_to_itself(budget: list[Limit], longest: int, rate: float) -> None:
    text = job(
        budget={limit.metric: limit.text for limit in budget},
        space={"attention": ["kv12.5%", "kv3"], "ffn": ["7%", "skip"], "fuse": {"longest": longest}},
        distill={"learning_rate": rate, "kinds": {"kv": {"learning_rate": rate / 3}}},
        scenario={"generated_tokens": 2},
        data={"train": {"dataset": "org/text"}, "evaluation": [__file__]},
        heal=False,
    )
    request = parse(text, "job.yaml")
    assert request.budget == tuple(sorted(budget, key=lambda limit: limit.metric))
    assert parse(yaml.safe_dump(request.canonical(), sort_keys=False), "elsewhere/other.yaml") == request


@given(st.sampled_from(sorted(METRICS)), st.floats(1e-12, 1e18))
def test_a_printed_quantity_is_close_to_the_quantity(metric: str, value: float) -> None:
    assert parse_quantity(metric, format_quantity(metric, value)) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency", 0.0123, "12.3 ms"),
        ("ttft", 0.9999, "1.00 s"),
        ("decode", 0.0, "0 s"),
        ("memory", 1.5 * 2**30, "1.50 GiB"),
        ("memory", 1023.9 * 2**20, "1.00 GiB"),
        ("throughput", 900.0, "900 tok/s"),
        ("throughput", 12345.6, "12346 tok/s"),
        ("parameters", 2.1e9, "2.10 B"),
        ("parameters", 512.0, "512"),
        ("bits", 4.5, "4.50"),
        ("bits", 16.0, "16"),
    ],
)
def test_quantities_print_to_three_digits(metric: str, value: float, text: str) -> None:
    assert format_quantity(metric, value) == text


def test_quantities_read_with_their_units() -> None:
    assert parse_quantity("latency", "1.5min") == 90
    assert parse_quantity("memory", "24 GB") == 24e9
    assert parse_quantity("file", "60 MB") == 60e6
    assert parse_quantity("bits", 4.5) == parse_quantity("bits", "4.5 bits") == 4.5
    assert parse_quantity("parameters", 7_000_000) == 7e6
    assert parse_budget("latency=50%, memory=1.5GiB") == (
        Limit("latency", 0.5, relative=True),
        Limit("memory", 1.5 * 2**30, relative=False),
    )


def test_a_limit_says_which_way_it_binds() -> None:
    limit = parse_limit("throughput", "180%")
    assert limit.at_least
    assert limit.absolute(500.0) == 900.0
    assert str(limit) == "throughput >= 180% of the parent's"
    assert str(parse_limit("memory", "1.5 GiB")) == "memory <= 1.50 GiB"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_quantity(value: float) -> None:
    with pytest.raises(ValueError, match="latency"):
        format_quantity("latency", value)
    with pytest.raises(ValueError, match="latency"):
        parse_limit("latency", value)


# --- mistakes -------------------------------------------------------------------------------------------------------

ROUNDED = {"space": {"precision": ["q4_0"]}, "export": {"format": "gguf"}}
MISTAKES = [
    (dict(budget={"latncy": "60%"}), "budget.latncy: .*did you mean 'latency'"),
    (dict(budget={"latency": "3 GiB"}), "budget.latency: 'GiB' in '3 GiB' is not a unit of latency; .*ms"),
    (dict(budget={"latency": 12}), "budget.latency: 12 has no unit"),
    (dict(budget={"latency": "160%"}), r"budget.latency: 160% .*\(0, 100\]"),
    (dict(budget={"memory": "0%"}), "budget.memory: '0%' is not a positive percentage"),
    (dict(budget={"memory": "-1 GiB"}), "budget.memory: .*positive"),
    (dict(budget={"memory": True}), "budget.memory: True is not a value for memory"),
    (dict(budget={}), "budget: .*at least one limit"),
    (dict(budget="60%"), "budget: '60%' .*like latency: 60%"),
    (dict(budget={"decode": "60%"}), "budget.decode: .*generated_tokens: 2"),
    (dict(export={"format": "gguf", "precision": "q4_k_m"}), "export.precision: 'q4_k_m' is not known.* q4_k,"),
    (dict(export={"precision": "q8_0"}), "export.precision: format hf has none"),
    (dict(scenario={"engine": "vllm"}, export={"format": "hf"}), "export.format: .*hf does not run.*give decilm"),
    (dict(scenario={"engine": "vllm"}, export={"format": "gguf"}), "export.format: vllm is .*gguf does not run"),
    (dict(scnario={"batch": 1}), "scnario: unknown key; did you mean 'scenario'"),
    (dict(scenario={"bacth": 1}), "scenario.bacth: unknown key; did you mean 'batch'"),
    (dict(scenario={"batch": 0}), "scenario.batch: should be greater than 0, not 0"),
    (dict(scenario={"batch": 1.5}), "scenario.batch: should be a valid integer, not 1.5"),
    (dict(scenario={"batch": True}), "scenario.batch: should be a valid integer, not True"),
    (
        dict(scenario={"dtype": "q8_0", "engine": "llama_cpp"}, export={"format": "gguf", "precision": "q4_0"}),
        "export.precision: the file would hold q4_0, and scenario.dtype takes the times in q8_0",
    ),
    (
        dict(scenario={"dtype": "float31"}),
        "scenario.dtype: the engine torch has no 'float31'; did you mean one of float32, bfloat16, float16",
    ),
    (dict(scenario={"device": "gpu"}), "scenario.device: .*not 'gpu'"),
    (dict(scenario=3), "scenario: should be keys and values, not 3"),
    (dict(data={}), "data.train: is missing"),
    (dict(data={"train": []}), r"data.train: \[\] names no text"),
    (dict(data={"train": [3]}), "data.train: 3 is not a path"),
    (dict(data={"train": ["no/such.txt"]}), "data.train: .*/no/such.txt does not exist"),
    (dict(data={"train": "no/*.txt"}), r"data.train: .*/no/\*.txt matches no file"),
    (dict(data={"train": ["."]}), "data.train: .* is a folder; name its files"),
    (dict(data={"train": {"dataset": "./none"}}), "data.train.dataset: there is no /.*/none"),
    (dict(data={"train": {"datset": "x"}}), "data.train.datset: unknown key; did you mean 'dataset'"),
    (dict(data={"train": ["$PUZZLE_NO_SUCH/x"]}), r"data.train: the environment variable \$PUZZLE_NO_SUCH .*not set"),
    (dict(data={"train": "stdlib", "sequence_length": 4}), "data.sequence_length: .*greater than or equal to 8, not 4"),
    (dict(data={"train": "stdlib", "score_tokens": 100}), "data.score_tokens: 100 is less than one sequence; .*256"),
    (dict(data={"train": "stdlib", "calibration_tokens": 300_000}), "data.calibration_tokens: .*at most .*262144"),
    (dict(measure={"whole_models": 2}), "measure.whole_models: .*greater than or equal to 4, not 2"),
    (dict(measure={"whole_models": 8, "table": "t"}), "measure.whole_models: nothing is timed where measure.table"),
    (dict(space={"attention": ["kv50"], "ffn": ["50"]}), "space.ffn.0.: '50' is no option here; write ffn50%"),
    (dict(space={"attention": "kv50%"}), "space.attention: should be a valid list, not 'kv50%'"),
    (dict(space={"attention": ["ffn50%"]}), "space.attention.0.: 'ffn50%' is no option here; write kv50%"),
    (dict(space={"ffn": ["150%"]}), "space.ffn.0.: 150% is more than the parent has"),
    (dict(space={"ffn": ["50%", "ffn50%"]}), "space.ffn: ffn50% is given twice"),
    (dict(space={"fuse": {"longest": 1}}), "space.fuse.longest: .*2, not 1"),
    (dict(space={"attention": [], "ffn": [], "fuse": None, "drop_blocks": False}), "space: leaves nothing to choose"),
    (dict(distill={"kinds": {"linear": {"rate": 1}}}), "distill.kinds.linear.rate: unknown key; .*known: tokens"),
    (dict(distill={"warmup": 1.0}), "distill.warmup: should be less than 1, not 1.0"),
    (dict(distill={"learning_rate": float("nan")}), "distill.learning_rate: .*not nan"),
    (dict(distill={"tokens": 300_000}), "distill.tokens: 300000 is more than .*at most .*262144"),
    (dict(distill={"kinds": {"kv": {"tokens": 9}}}), "distill.kinds.kv.tokens: 9 is less than one sequence"),
    (dict(heal={"tokens": 100}), "heal.tokens: 100 is less than"),
    (dict(round={"tokens": 4096}), "round.tokens: nothing is rounded without space.precision"),
    (dict(heal={"rounding": "through"}), "heal.rounding: nothing is rounded without space.precision"),
    (dict(score={"rounded": "checked"}), "score.rounded: nothing is rounded without space.precision"),
    (dict(round={"tokens": 300}, **ROUNDED), "round.tokens: 300 is less than two batches; give at least 512"),
    (dict(round={"tokens": 300_000}, **ROUNDED), "round.tokens: 300000 is more than .*at most .*262144"),
    (dict(solver={"time_limit": 60}), "solver.time_limit: 60 has no unit"),
    (dict(solver={"refine": 20}, score={"metric": "lm_loss"}), "solver.refine: refining corrects sums of KL"),
    (dict(parent="./none"), "parent: there is no /.*/none"),
    (dict(name="a/b"), "name: 'a/b' is not a name"),
]


@pytest.mark.parametrize(("sections", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_named_with_its_key(sections: dict[str, object], message: str) -> None:
    said = mistake(job(**sections))
    assert re.fullmatch(f"job.yaml: {message}.*", said), said


def test_a_folder_that_is_no_checkpoint_is_no_parent(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no config.json" in mistake(job(parent=str(tmp_path)))


def test_every_mistake_is_a_line() -> None:
    lines = mistake("data: {train: stdlib}\nscenario: {batch: 0}\n").splitlines()
    assert lines == [
        "job.yaml: parent: is missing",
        "job.yaml: scenario.batch: should be greater than 0, not 0",
        "job.yaml: budget: is missing",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "parent: other\n", "job.yaml, line 4: parent is given twice"),
        ("parent: [\n", "job.yaml, line 2: "),
        ("", "job.yaml: a job is keys and values"),
        ("\0", "job.yaml: "),
    ],
)
def test_what_is_no_yaml_is_named_with_its_line(text: str, message: str) -> None:
    assert mistake(text).startswith(message)


def test_a_job_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(JobError, match=r"latin\.yaml: not UTF-8 at byte 6"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", ["latency", "latency=", "=5", "latency=50%,latency=40%", "latncy=5 ms", ""])
def test_a_budget_on_the_command_line_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"METRIC=VALUE|twice|did you mean 'latency'"):
        parse_budget(text)


def test_reading_a_job_imports_no_torch() -> None:
    code = "import sys, nas.job.config; sys.exit(bool({'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_parent_is_a_folder_of_the_package() -> None:
    request: Request = parse(SMALLEST, "job.yaml")
    assert request.parent == "embedded"
    assert Path(request.checkpoint).parts[-3:] == ("nas", "embedded", "parent")
