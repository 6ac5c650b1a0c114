"""Two models and the memory that is free: both at once, in turns, or refused. Nothing here says how fast it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from powercap import add_zone
from small_costs import config_for_engines

from blocklib.block import Architecture
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.analytic import architecture_cost
from cost_models.energy.meter import meter_of
from cost_models.engines.engines import engine_of
from cost_models.engines.llama_cpp import LlamaCpp
from cost_models.engines.memory import fit_together
from cost_models.engines.vllm_engine import Vllm
from cost_models.errors import EngineStoppedError, MissingEngineError, ScenarioError
from cost_models.hardware import available_bytes
from cost_models.scenario import Scenario
from cost_models.timing.pair import Rounds

TWO = Rounds(least=2, most=2)
IN_VLLM = Scenario("cpu", "float32", batch=2, prompt_tokens=5, generated_tokens=4, threads=1, engine="vllm")
IN_TORCH = replace(IN_VLLM, engine="torch")
FAR_TOO_MUCH = 10**18


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_for_engines()


@pytest.fixture(scope="module")
def parent(config: PuzzleNasConfig) -> Architecture:
    return parent_architecture(own_shape(config))


@pytest.fixture
def vllm() -> Vllm:
    try:
        Vllm().check_installed()
    except MissingEngineError as missing:
        pytest.skip(str(missing))
    return Vllm()


def test_models_fit_together_as_long_as_their_sum_is_well_under_what_is_free() -> None:
    free = available_bytes(torch.device("cpu"))
    assert fit_together([free // 4, free // 4])
    assert not fit_together([free // 2, free // 2])
    assert not fit_together([0, FAR_TOO_MUCH])


def test_a_model_for_vllm_starts_nothing_before_it_is_asked(config: PuzzleNasConfig, parent: Architecture) -> None:
    lean = Architecture.parse(" ".join(["skip+ffn32"] * len(parent.blocks)))
    with Vllm().random(config, parent, IN_VLLM) as whole, Vllm().random(config, lean, IN_VLLM) as less:
        assert not whole.runs
        assert whole.held_bytes > architecture_cost(parent, own_shape(config), IN_VLLM).weight_bytes
        assert whole.held_bytes > less.held_bytes


def test_the_cache_for_vllm_holds_the_attention_of_zeros_too(config: PuzzleNasConfig, parent: Architecture) -> None:
    many, later = replace(IN_VLLM, batch=256, prompt_tokens=4000), ["skip+ffn32"] * (len(parent.blocks) - 1)
    none, first = (Architecture.parse(" ".join([block, *later])) for block in ("skip+ffn32", "kv1+ffn32"))
    weights = [architecture_cost(one, own_shape(config), many).weight_bytes for one in (none, first)]
    with Vllm().random(config, none, many) as without, Vllm().random(config, first, many) as one_head:
        assert one_head.held_bytes - without.held_bytes == weights[1] - weights[0]


def test_models_of_vllm_run_side_by_side_where_they_fit(
    vllm: Vllm, config: PuzzleNasConfig, parent: Architecture
) -> None:
    with vllm.random(config, parent, IN_VLLM) as one, vllm.random(config, parent, IN_VLLM) as other:
        assert vllm.time(one, other, IN_VLLM, TWO).rounds == 2
        assert one.runs
        assert other.runs
        # The processes that run already take no more memory.
        one.held_bytes = other.held_bytes = FAR_TOO_MUCH
        assert vllm.time(one, other, IN_VLLM, TWO).rounds == 2
        assert one.runs
        assert other.runs
    assert not one.runs


def test_models_of_vllm_take_turns_where_they_do_not(vllm: Vllm, config: PuzzleNasConfig, parent: Architecture) -> None:
    with vllm.random(config, parent, IN_VLLM) as one, vllm.random(config, parent, IN_VLLM) as other:
        one.held_bytes = FAR_TOO_MUCH
        timed = vllm.time(one, other, IN_VLLM, TWO)
        assert timed.rounds == 2
        assert timed.decode is not None
        assert one.runs != other.runs
        assert one.used_s() > 0
        assert other.used_s() > 0


def test_vllm_on_another_device_than_is_asked_for_is_refused(
    vllm: Vllm, config: PuzzleNasConfig, parent: Architecture
) -> None:
    """This one is built for the CPU, or finds a GPU."""
    own, other = ("cpu", "cuda") if "cpu" in vllm.version() else ("cuda", "cpu")
    with vllm.random(config, parent, replace(IN_VLLM, device=other)) as model:
        with pytest.raises(EngineStoppedError, match=rf"scenario\.device is {other}, and .* runs on {own} here"):
            model.ask([[1, 2, 3]], 1)
        assert not model.runs


def test_energy_is_not_measured_in_turns(config: PuzzleNasConfig, parent: Architecture, tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0")
    meter = meter_of("cpu", tmp_path)
    with Vllm().random(config, parent, IN_VLLM) as model:
        model.held_bytes = FAR_TOO_MUCH
        with pytest.raises(ScenarioError, match=r"energy cannot be measured.*leave out budget\.energy"):
            Vllm(meter).time(model, model, IN_VLLM, TWO)
        assert not model.runs
    in_llama_cpp = replace(IN_VLLM, engine="llama_cpp", dtype="q8_0")
    refused = pytest.raises(ScenarioError, match="energy cannot be measured")
    with LlamaCpp().random(config, parent, in_llama_cpp) as file, refused:
        LlamaCpp(meter).time(replace(file, held_bytes=FAR_TOO_MUCH), file, in_llama_cpp, TWO)


@pytest.mark.parametrize("name", ["torch", "torch_compile"])
def test_a_model_that_torch_cannot_hold_beside_the_other_is_refused_before_it_is_made(
    name: str, config: PuzzleNasConfig, parent: Architecture
) -> None:
    engine, huge = engine_of(name), replace(IN_TORCH, engine=name, batch=10**10)
    said = rf"{name} holds both models .* TiB, and cpu has .* free; .*take turns"
    with pytest.raises(ScenarioError, match=said), engine.random(config, parent, huge):
        pass
