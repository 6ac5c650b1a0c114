"""llama.cpp as the engine that takes the times. Nothing here says how fast anything is."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from small_costs import config_for_engines

from blocklib.block import TABLES, Architecture, Choice, Subblock
from blocklib.formats.gguf_types import PRECISIONS
from blocklib.kinds import parent_architecture, parent_block
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.analytic import architecture_cost
from cost_models.engines.engines import describe, engine_of
from cost_models.engines.llama_cpp import GgufFile, LlamaCpp, LlamaSubject
from cost_models.engines.llama_server import llama_server
from cost_models.errors import EngineStoppedError, MissingEngineError, ScenarioError, UnsupportedByEngineError
from cost_models.geometry import FIXED, Geometry
from cost_models.scenario import ENGINES, Scenario
from cost_models.timing.measure import TimedStack, measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Rounds

SCENARIO = Scenario("cpu", "q8_0", batch=2, prompt_tokens=5, generated_tokens=4, threads=1, engine="llama_cpp")
LLAMA_CPP, TWO = LlamaCpp(), Rounds(least=2, most=2)


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_for_engines()


@pytest.fixture(scope="module")
def parent(config: PuzzleNasConfig) -> Architecture:
    return parent_architecture(own_shape(config))


def test_real_weights_run_as_random_ones_do(config: PuzzleNasConfig, parent: Architecture) -> None:
    from cost_models.engines.torch_eager import random_model

    model = random_model(config, parent, Scenario("cpu", "float32", 1, 1, 1))
    with LLAMA_CPP.random(config, parent, SCENARIO) as one, LLAMA_CPP.real(model, SCENARIO) as two:
        assert one.held_bytes == pytest.approx(two.held_bytes, rel=0.01)
        timed = LLAMA_CPP.time(one, two, SCENARIO, TWO)
    assert timed.decode is not None
    assert timed.rounds == 2
    assert 0 <= timed.contention <= 1
    assert not one.file.exists()


def test_models_that_memory_does_not_hold_together_take_turns(config: PuzzleNasConfig, parent: Architecture) -> None:
    with LLAMA_CPP.random(config, parent, SCENARIO) as model:
        subject = LlamaSubject(model, SCENARIO, stays=False)
        assert subject.prefill() > 0
        before = subject.used_s()
        assert subject.decode() > 0
        assert subject.used_s() > before > 0
        huge = replace(model, held_bytes=10**18)
        assert LLAMA_CPP.time(huge, model, SCENARIO, TWO).rounds == 2


def test_an_engine_that_ends_is_an_error_that_says_so(config: PuzzleNasConfig, parent: Architecture) -> None:
    with LLAMA_CPP.random(config, parent, SCENARIO) as model:
        settings: dict[str, Any] = {"threads": 1, "sequences": 1, "context_tokens": 16, "batch_tokens": 16}
        with llama_server(file=str(model.file), **settings) as server:
            os.kill(server.process, signal.SIGKILL)
            with pytest.raises(EngineStoppedError, match="ended with status -9"):
                server.ask("/completion", {"prompt": [1], "n_predict": 1})


def servers() -> list[psutil.Process]:
    """The servers of this process."""
    return [one for one in psutil.Process().children() if any("llama_cpp_server" in word for word in one.cmdline())]


def test_a_server_that_is_killed_between_two_passes_is_an_error_that_says_so(
    config: PuzzleNasConfig, parent: Architecture
) -> None:
    def kill(*_: Any) -> None:
        for server in servers():
            server.kill()

    ended = pytest.raises(EngineStoppedError, match=r"llama\.cpp ended with status -9 on .*model\.gguf")
    with LLAMA_CPP.random(config, parent, SCENARIO) as model, ended:
        LLAMA_CPP.time(model, model, SCENARIO, TWO, kill)
    assert not servers()


def test_a_file_cut_short_is_an_error_with_its_reason(config: PuzzleNasConfig, parent: Architecture) -> None:
    with LLAMA_CPP.random(config, parent, SCENARIO) as model:
        whole = model.file.read_bytes()
        model.file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(EngineStoppedError, match=r"model\.gguf"):
            LLAMA_CPP.time(model, model, SCENARIO, TWO)


def test_an_engine_that_ends_half_way_leaves_the_times_until_then(config: PuzzleNasConfig) -> None:
    class Ends(LlamaCpp):
        timed = 0

        def time(self, control: GgufFile, other: GgufFile, *how: Any) -> Any:
            type(self).timed += 1
            if self.timed == 6:
                other.file.write_bytes(b"GGUF")
            return super().time(control, other, *how)

    wanted = [Geometry("ffn", Subblock("ffn", width)) for width in ("32", "64")]
    found: list[Any] = []
    with pytest.raises(EngineStoppedError):
        found.extend(measure(config, wanted, SCENARIO, TWO, engine=Ends()))
    kept = {one.geometry for one in found if isinstance(one, MeasuredGeometry)}
    assert wanted[0] in kept
    assert wanted[1] not in kept


def test_a_part_in_the_precision_of_all_weights_is_timed_once(config: PuzzleNasConfig) -> None:
    own = parent_block(own_shape(config))
    wanted = [
        Geometry("fixed", TABLES.at("q8_0")),
        Geometry("ffn", own.ffn.at("q8_0")),
        Geometry("ffn", own.ffn.at("q4_0")),
        Geometry("ffn", Subblock("ffn", "32").at("q8_0")),
        Geometry("ffn", Subblock("ffn", "32")),
    ]
    seen = list(measure(config, wanted, SCENARIO, TWO, engine=LLAMA_CPP))
    found = {one.geometry: replace(one, geometry=FIXED) for one in seen if isinstance(one, MeasuredGeometry)}
    assert found.keys() == {FIXED, Geometry("attention", own.attention), Geometry("ffn", own.ffn), *wanted}
    assert found[wanted[0]] == found[FIXED]
    assert found[wanted[1]] == found[Geometry("ffn", own.ffn)] != found[wanted[2]]
    assert found[wanted[3]] == found[wanted[4]]
    assert {one.total for one in seen if isinstance(one, TimedStack)} == {6}  # four first ones, q4_0 and 32 channels


def test_bytes_are_those_of_the_file(config: PuzzleNasConfig, parent: Architecture) -> None:
    for precision in ("f32", "q8_0", "q4_0"):
        scenario = replace(SCENARIO, dtype=precision)
        with LLAMA_CPP.random(config, parent, scenario) as model:
            held = architecture_cost(parent, own_shape(config), scenario).weight_bytes
            # The rest is the vocabulary and the names of the tensors.
            assert 0 < model.file.stat().st_size - held < 64_000


def test_what_it_cannot_run_is_refused_before_any_work(config: PuzzleNasConfig) -> None:
    sparse = [Choice.parse("L1.ffn=dip50")]
    with pytest.raises(UnsupportedByEngineError, match=r"L1\.ffn=dip"):
        LLAMA_CPP.check(sparse, config, SCENARIO)
    with pytest.raises(UnsupportedByEngineError, match="not on cuda"):
        LLAMA_CPP.check([], config, replace(SCENARIO, device="cuda"))
    LLAMA_CPP.check([Choice.parse("L1.ffn=linear"), Choice.parse("L0.attention=skip")], config, SCENARIO)


def test_an_engine_that_is_not_installed_says_what_to_type() -> None:
    class Absent(LlamaCpp):
        package = "no_such_package"

    with pytest.raises(MissingEngineError, match=r"run: pip install 'puzzle-nas\[llama-cpp\]'"):
        Absent().check_installed()


def test_the_machines_line_names_the_engine() -> None:
    assert "xllamacpp" in describe(SCENARIO)
    assert engine_of("llama_cpp").name == "llama_cpp"
    assert ENGINES["llama_cpp"] == tuple(PRECISIONS)
    with pytest.raises(ScenarioError, match="not supported by the engine llama_cpp"):
        replace(SCENARIO, dtype="float32")


def test_a_server_answers_and_ends_with_its_block(config: PuzzleNasConfig, parent: Architecture) -> None:
    with LLAMA_CPP.random(config, parent, SCENARIO) as model:
        settings: dict[str, Any] = {"threads": 1, "sequences": 1, "context_tokens": 16, "batch_tokens": 16}
        with llama_server(file=str(model.file), **settings) as server:
            answer = server.ask("/completion", {"prompt": [1, 2], "n_predict": 2, "ignore_eos": True})
            assert answer["tokens_predicted"] == 2
            running = Path("/proc", str(server.process))
        assert not running.exists()


def test_a_server_on_this_machine_is_asked_past_any_proxy(
    config: PuzzleNasConfig, parent: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with LLAMA_CPP.random(config, parent, SCENARIO) as model:
        assert LlamaSubject(model, SCENARIO, stays=False).prefill() > 0
