"""The behaviour of every engine: one suite for each that is installed here. No test says how fast anything is."""

from dataclasses import replace

import pytest
from small_costs import config_of

from blocklib.block import Architecture, Choice, Parallel, Subblock
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.engines.engine import Engine
from cost_models.engines.engines import describe, engine_of
from cost_models.engines.torch_eager import random_model
from cost_models.engines.vllm_process import visible_gpu
from cost_models.errors import MissingEngineError, ScenarioError, UnsupportedByEngineError
from cost_models.geometry import FIXED, Geometry
from cost_models.scenario import ENGINES, USUAL_DTYPE, Scenario
from cost_models.timing.measure import measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Rounds

TWO = Rounds(least=2, most=2)


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_of(
        hidden_size=64,
        intermediate_size=96,
        head_dim=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=300,
    )


@pytest.fixture(scope="module")
def parent(config: PuzzleNasConfig) -> Architecture:
    return parent_architecture(own_shape(config))


@pytest.fixture(scope="module", params=ENGINES)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    """The same small batch in each engine; skipped where the engine is not installed."""
    name = request.param
    try:
        engine_of(name).check_installed()
    except MissingEngineError as missing:
        pytest.skip(str(missing))
    dtype = "float32" if "float32" in ENGINES[name] else USUAL_DTYPE[name]
    return Scenario("cpu", dtype, batch=2, prompt_tokens=5, generated_tokens=4, threads=1, engine=name)


@pytest.fixture(scope="module")
def engine(scenario: Scenario) -> Engine:
    return engine_of(scenario.engine)


def test_every_geometry_has_a_time(config: PuzzleNasConfig, engine: Engine, scenario: Scenario) -> None:
    wanted = [Geometry("attention", Subblock("kv", "1")), Geometry("ffn", Subblock("ffn", "32"))]
    seen = list(measure(config, wanted, scenario, TWO, engine=engine))
    times = {one.geometry: one for one in seen if isinstance(one, MeasuredGeometry)}
    assert {FIXED, *wanted} <= times.keys()
    assert all(one.prefill_s >= 0 and one.decode_s >= 0 for one in times.values())
    assert times[FIXED].prefill_s > 0


def test_real_weights_run_and_stay_as_they_are(
    config: PuzzleNasConfig, parent: Architecture, engine: Engine, scenario: Scenario
) -> None:
    model = random_model(config, parent, Scenario("cpu", "float32", 1, 1, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with engine.real(model, scenario) as real:
        timed = engine.time(real, real, scenario, TWO)
    assert timed.decode is not None
    assert timed.rounds == 2
    assert min(timed.prefill.control_samples + timed.decode.control_samples) > 0
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_one_token_takes_no_decode_steps(
    config: PuzzleNasConfig, parent: Architecture, engine: Engine, scenario: Scenario
) -> None:
    alone = replace(scenario, generated_tokens=1)
    with engine.random(config, parent, alone) as model:
        assert engine.time(model, model, alone, TWO).decode is None


def test_the_parents_own_parts_and_smaller_ones_are_never_refused(
    config: PuzzleNasConfig, parent: Architecture, engine: Engine, scenario: Scenario
) -> None:
    smaller = ["L0.attention=kv1", "L1.ffn=ffn32", "L1.attention=skip", "L0.ffn=skip", "L0.ffn=fuse(ffn32,ffn32)"]
    engine.check([*parent.choices(), *map(Choice.parse, smaller)], config, scenario)


def test_what_is_refused_is_named(config: PuzzleNasConfig, engine: Engine, scenario: Scenario) -> None:
    if scenario.engine == "torch":
        pytest.skip("it runs all kinds")
    with pytest.raises(UnsupportedByEngineError, match=rf"the engine {engine.name} cannot run.* L1\.ffn=dip50"):
        engine.check([Choice.parse("L1.ffn=dip50")], config, scenario)
    with pytest.raises(UnsupportedByEngineError, match=f"the engine {engine.name} runs on"):
        engine.check([], config, replace(scenario, device="mps"))


def test_the_machines_line_names_the_engine_and_its_version(engine: Engine, scenario: Scenario) -> None:
    assert describe(scenario).endswith(engine.version())
    assert any(digit in engine.version() for digit in "0123456789")


def test_each_engine_has_a_usual_type_and_a_line_of_its_own() -> None:
    assert ENGINES.keys() == USUAL_DTYPE.keys()
    assert all(engine_of(name).name == name for name in ENGINES)
    keys = {Scenario("cpu", USUAL_DTYPE[name], 1, 1, 1, engine=name).key() for name in ENGINES}
    assert len(keys) == len(ENGINES)
    assert Scenario("cpu", "float32", 1, 2, 3).key() == "cpu,float32,batch=1,prompt=2,generated=3,threads=all"


def test_gpus_are_divided_among_by_vllm_alone() -> None:
    two = Scenario("cuda", "bfloat16", 1, 1, 1, engine="vllm", tensor_parallel=2)
    assert two.key().endswith("engine=vllm,tensor_parallel=2")
    with pytest.raises(ScenarioError, match="only vllm"):
        replace(two, engine="torch")


def test_vllm_refuses_what_its_form_has_no_place_for(config: PuzzleNasConfig) -> None:
    vllm, scenario = engine_of("vllm"), Scenario("cpu", "float32", 1, 1, 1, engine="vllm")
    parallel = Architecture.parse("kv2+ffn96|kv2+ffn96")
    assert isinstance(parallel.blocks[0], Parallel)
    for choices, why in (
        ([Choice.parse("L0.ffn=linear")], "no linear FFN"),
        ([Choice.parse("L0.attention=window4")], "no window attention"),
        (parallel.choices(), "no blocks in parallel"),
    ):
        with pytest.raises(UnsupportedByEngineError, match=why):
            vllm.check(choices, config, scenario)


def test_the_gpu_that_vllm_sees_is_the_one_that_torch_means() -> None:
    assert visible_gpu("cuda:1", None) == "1"
    assert visible_gpu("cuda:1", "2,3") == "3"
    assert visible_gpu("cuda:0", "GPU-8f3, GPU-9a1") == "GPU-8f3"
    with pytest.raises(ScenarioError, match=r"'cuda:2': CUDA_VISIBLE_DEVICES is '2,3', which lists 2"):
        visible_gpu("cuda:2", "2,3")


def test_vllm_in_an_interpreter_that_has_none_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("NAS_VLLM_PYTHON", str(tmp_path_factory.mktemp("none") / "python"))
    with pytest.raises(MissingEngineError, match=r"NAS_VLLM_PYTHON is .*no Python that runs"):
        engine_of("vllm").check_installed()
