"""The type of keys and values: what a scenario says of it, its bytes, and llama.cpp running with it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from urllib.request import Request, urlopen

import gguf
import pytest
import rows
import yaml
from checkpoints import saved
from searches import job, parent_folder
from small_costs import config_for_engines, config_of
from test_serving import free_port

import nas
from blocklib.block import Subblock
from blocklib.kinds import choice_kv_values, parent_architecture
from blocklib.parent import Parent, load_parent, own_shape
from blocklib.shape import Shape
from cost_models.analytic import architecture_cost
from cost_models.engines.llama_cpp import GgufFile, LlamaCpp, LlamaSubject
from cost_models.engines.llama_server import cache_flags, llama_server
from cost_models.errors import ScenarioError, UnsupportedByEngineError
from cost_models.geometry import Geometry
from cost_models.scenario import ENGINES, KV_CACHES, USUAL_DTYPE, Scenario
from cost_models.timing.pair import Rounds
from nas.errors import JobError
from nas.job import config
from nas.job.scenario import scenario_of
from nas.job.stored import scenario_in
from nas.report.request import served as served_words
from nas.serving.artefact import Artefact
from nas.serving.serve import Endpoint, served
from nas.stages.cost_table import CostTable, GeometryTimes, read_cost_table
from nas.stages.preflight import check

SCENARIO = Scenario("cpu", "q8_0", batch=2, prompt_tokens=5, generated_tokens=4, threads=1, engine="llama_cpp")
TYPES = KV_CACHES["llama_cpp"]
JOB = {"name": "j", "parent": "embedded", "data": {"train": "stdlib"}, "budget": {"memory": "80%"}}


@pytest.fixture(scope="module")
def embedded() -> Parent:
    return load_parent(str(parent_folder()))


def request(**scenario: object) -> config.Request:
    return config.parse(yaml.safe_dump(JOB | {"scenario": scenario}), "job.yaml")


# What a scenario says


def test_the_key_names_a_type_that_is_not_the_usual_one() -> None:
    assert replace(SCENARIO, kv_cache="q8_0").key() == f"{SCENARIO.key()},kv_cache=q8_0"
    assert replace(SCENARIO, kv_cache="f16") == SCENARIO == replace(SCENARIO, kv_cache=None)
    assert SCENARIO.key() == "cpu,q8_0,batch=2,prompt=5,generated=4,threads=1,engine=llama_cpp", "as it always was"
    assert len({replace(SCENARIO, kv_cache=one).key() for one in TYPES}) == len(TYPES)


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"llama_cpp"}))
def test_other_engines_have_no_choice(engine: str) -> None:
    scenario = Scenario("cpu", USUAL_DTYPE[engine], 1, 1, 1, engine=engine)
    assert scenario.cache_bytes(3) == 3 * scenario.bytes_per_value
    for one in ("f16", "q8_0"):
        with pytest.raises(
            ScenarioError, match=f"the engine {engine} holds keys and values in the type of the weights"
        ):
            replace(scenario, kv_cache=one)
        with pytest.raises(JobError, match=rf"scenario\.kv_cache: the engine {engine} .* leave out kv_cache"):
            config.parse(
                yaml.safe_dump(JOB | {"scenario": {"engine": engine, "kv_cache": one}, "export": {
                    "format": "decilm" if engine == "vllm" else "hf"}}), "job.yaml")  # fmt: skip


def test_a_type_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        JobError, match=r"scenario\.kv_cache: .* no keys and values in 'q4_k'; use one of f16, .*iq4_nl"
    ):
        request(engine="llama_cpp", kv_cache="q4_k")


def test_a_job_and_its_scenario_name_it() -> None:
    asked = request(engine="llama_cpp", kv_cache="q8_0")
    assert scenario_of(asked).kv_cache == "q8_0"
    assert served_words(scenario_of(asked)).endswith("by llama_cpp, keys and values in q8_0")
    assert scenario_of(request(engine="llama_cpp", kv_cache="f16")).kv_cache is None
    assert config.served_by(asked, None, "q4_0").scenario.kv_cache == "q8_0"
    assert config.served_by(asked, "torch", None).scenario.kv_cache is None, "another engine has its usual types"


def test_a_search_of_before_there_was_a_choice_is_read() -> None:
    old = {name: value for name, value in asdict(SCENARIO).items() if name != "kv_cache"}
    assert scenario_in(rows.search(scenario=old)) == SCENARIO


def test_a_table_of_costs_says_it_and_is_as_before_without(tmp_path: Path) -> None:
    times = {str(Geometry("ffn", Subblock("ffn", "8"))): GeometryTimes(prefill_s=1.0)}
    plain = CostTable(scenario=SCENARIO, hardware="here", geometries=times)
    assert (
        "kv_cache"
        not in json.loads(plain.write(tmp_path / "plain.json") and (tmp_path / "plain.json").read_text())["scenario"]
    )
    other = plain.model_copy(update={"scenario": replace(SCENARIO, kv_cache="q8_0")})
    other.write(tmp_path / "other.json")
    read = read_cost_table(tmp_path / "other.json")
    assert (read.scenario.kv_cache, read.digest) == ("q8_0", other.digest)
    assert read.digest != plain.digest == read_cost_table(tmp_path / "plain.json").digest
    spelled = json.loads((tmp_path / "other.json").read_text())
    spelled["scenario"]["kv_cache"] = "f16"
    (tmp_path / "usual.json").write_text(json.dumps(spelled))
    assert read_cost_table(tmp_path / "usual.json").scenario == SCENARIO


# Bytes


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_those_of_whole_blocks(kind: str, embedded: Parent) -> None:
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    shape, scenario = embedded.shape, replace(SCENARIO, kv_cache=kind)
    whole = parent_architecture(shape)
    values = sum(choice_kv_values(one, shape, scenario.context_tokens) for one in whole.choices()) * scenario.batch
    assert values == 2 * shape.layers * shape.kv_heads * shape.head_dim * 9 * 2
    assert architecture_cost(whole, shape, scenario).cache_bytes == values // numbers * size
    assert scenario.cache_block == numbers


def test_q8_0_takes_34_bytes_for_32_values_and_nothing_of_the_weights(embedded: Parent) -> None:
    shape = embedded.shape
    usual, small = (
        architecture_cost(parent_architecture(shape), shape, replace(SCENARIO, kv_cache=kind))
        for kind in (None, "q8_0")
    )
    assert small.cache_bytes * 64 == usual.cache_bytes * 34
    assert small.weight_bytes == usual.weight_bytes


def test_heads_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    odd, shape = config_of(head_dim=48), own_shape(config_of(head_dim=48))
    scenario = replace(SCENARIO, kv_cache="q4_0")
    with pytest.raises(UnsupportedByEngineError, match=r"q4_0 by blocks of 32 .* has 48; use f16"):
        LlamaCpp().check([], odd, scenario)
    with pytest.raises(ScenarioError, match="q4_0 stores 32 numbers together"):
        scenario.cache_bytes(shape.head_dim)
    LlamaCpp().check([], odd, replace(SCENARIO, kv_cache="bf16"))
    with (
        LlamaCpp().random(odd, parent_architecture(shape), SCENARIO) as model,
        pytest.raises(UnsupportedByEngineError, match="has 48"),
    ):
        GgufFile.of(model.file, scenario)


def test_they_are_refused_before_any_work(tmp_path: Path) -> None:
    parent = saved(tmp_path / "parent")  # whose heads have 8 numbers
    given = {"batch": 2, "prompt_tokens": 32, "engine": "llama_cpp"}
    check(config.load(job(tmp_path, parent=str(parent), scenario=given)))
    with pytest.raises(UnsupportedByEngineError, match="a head has 8; use f16, bf16 or f32"):
        check(config.load(job(tmp_path, parent=str(parent), scenario=given | {"kv_cache": "q8_0"})))


# In llama.cpp


@pytest.mark.parametrize("kind", TYPES)
def test_the_embedded_parent_is_timed_with_it_and_answers(kind: str, embedded: Parent) -> None:
    """Its own weights, and an answer of some tokens beside that of f32."""
    scenario = replace(SCENARIO, kv_cache=kind)
    question = {"prompt": list(range(40, 72)), "n_predict": 8, "ignore_eos": True, "n_probs": 1, "temperature": 0}
    answers = []
    with LlamaCpp().real(embedded.whole(), scenario) as model:
        timed = LlamaCpp().time(model, model, scenario, Rounds(least=2, most=2))
        assert timed.decode is not None
        assert GgufFile.of(model.file, scenario).held_bytes == model.held_bytes
        for cache in ("f32", kind):
            settings = {"threads": 1, "sequences": 1, "context_tokens": 64, "batch_tokens": 64, "cache": cache}
            with llama_server(file=str(model.file), **settings) as server:
                answer = server.ask("/completion", question)
                assert answer["tokens_predicted"] == 8
                answers.append([one["logprob"] for one in answer["completion_probabilities"]])
    exact, kept = answers
    assert kept[0] == pytest.approx(exact[0], abs=0.5), "rounded, and no other model"
    # Flash attention rounds to half precision itself.
    assert (kept == exact) == (kind in ("f16", "f32")), "the type is in use"


def test_the_memory_of_its_process_is_smaller_by_what_arithmetic_says() -> None:
    parent, long = config_for_engines(), replace(SCENARIO, batch=1, generated_tokens=100_000)
    shape: Shape = own_shape(parent)
    whole = parent_architecture(shape)
    held, peaks = [], []
    with LlamaCpp().random(parent, whole, long) as model:
        for kind in ("f16", "q8_0"):
            scenario = replace(long, kv_cache=kind)
            subject = LlamaSubject(model, scenario, stays=True)
            assert subject.prefill() > 0
            held.append(architecture_cost(whole, shape, scenario).cache_bytes)
            peaks.append(subject.peak_bytes())
            subject.close()
    assert peaks[0] - peaks[1] == pytest.approx(held[0] - held[1], rel=0.1)


def test_a_bench_and_a_server_take_it(tmp_path: Path, embedded: Parent) -> None:
    file, scenario = tmp_path / "model.gguf", replace(SCENARIO, kv_cache="q8_0")
    with LlamaCpp().real(embedded.whole(), scenario) as model:
        file.write_bytes(model.file.read_bytes())
    load = {"batch": 1, "prompt_tokens": 5, "generated_tokens": 4, "threads": 1, "rounds": 2, "kv_cache": "q8_0"}
    found = nas.bench([file], load=load, progress=False)
    assert found.load.scenario("llama_cpp", "q8_0").kv_cache == "q8_0"
    assert found.engines[0].lines[0].figures["latency_s"].value > 0
    with pytest.raises(ScenarioError, match="the engine torch holds keys and values in the type of the weights"):
        nas.bench([parent_folder()], load=load, progress=False)
    with served(Artefact("one", file, kv_cache="q8_0"), None, Endpoint(port=free_port())) as server:
        assert not isinstance(server.process.args, str | bytes)
        assert "q8_0" in str(server.process.args[-1])
        question = json.dumps({"prompt": [40, 41, 42], "max_tokens": 3, "temperature": 0}).encode()
        asked = Request(f"{server.address}/v1/completions", question, {"Content-Type": "application/json"})
        with urlopen(asked) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3


def test_llama_servers_own_options() -> None:
    assert cache_flags(None) == []
    assert cache_flags("bf16") == ["--cache-type-k", "bf16", "--cache-type-v", "bf16"]
    assert cache_flags("q8_0") == ["--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--flash-attn", "on"]
