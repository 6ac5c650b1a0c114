"""The type of keys and values as a choice of the search: its spelling, score and costs, and what is served with it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from checkpoints import saved
from gguf import GGMLQuantizationType as Type
from rich.console import Console
from searches import Here, job, nas, parent_folder, rows, the_error
from small_costs import config_of
from transformers import LlamaConfig, Qwen3Config

import nas as package
from blocklib.block import CACHE, Architecture, Choice
from blocklib.kinds import ATTENTION, parent_architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent, own_shape
from blocklib.precisions.keys_and_values import KeptType, hadamard, kept_in, stored
from cost_models.analytic import architecture_cost
from cost_models.engines.llama_cpp import GgufFile, LlamaCpp
from cost_models.engines.llama_server import llama_server
from cost_models.geometry import Geometry, all_geometries, geometries
from cost_models.scenario import KV_CACHES, Scenario
from db.store import Store
from nas.scoring.kv_cache import score_kv_caches
from nas.serving.of_trial import child_of
from nas.solve.summary import summary
from nas.stages.cost_table import CostTable, GeometryTimes

pytest.importorskip("xllamacpp")

SCENARIO = Scenario("cpu", "q8_0", batch=4, prompt_tokens=48, generated_tokens=4, threads=1, engine="llama_cpp")
TYPES = KV_CACHES["llama_cpp"]
PLAIN: dict[str, Any] = {"attention": ["kv50%"], "ffn": ["50%"], "fuse": None, "drop_blocks": False}
SPACE: dict[str, Any] = PLAIN | {"kv_cache": ["f16", "q8_0", "q4_0"]}
HOW: dict[str, Any] = {
    "scenario": {"engine": "llama_cpp", "batch": 4, "prompt_tokens": 48, "generated_tokens": 4, "threads": 1},
    # Times are not limited, so they may be rough.
    "measure": {"tolerance": 0.5, "time_limit": "0.2 s"},
    "distill": {"tokens": 0},
    "heal": None,
    "export": {"format": "gguf"},
}


@pytest.fixture(scope="module")
def embedded() -> Parent:
    return load_parent(str(parent_folder()))


# The spelling


@pytest.mark.parametrize("text", ["kv8+ffn512 cache@q8_0", "kv8@q8_0+ffn512@q4_0 kv8+skip tables@q5_0 cache@f16",
                                  "kv8+ffn512 embedding@q4_0 head@q8_0 cache@iq4_nl"])  # fmt: skip
def test_an_architecture_says_it_last_of_all(text: str) -> None:
    architecture = Architecture.parse(text)
    assert str(architecture) == text
    assert architecture.cache == text.rpartition("@")[2]
    behind = Choice(architecture.layers + bool(architecture.tables), "cache", CACHE.at(architecture.cache))
    assert Choice.parse(str(behind)) == behind
    assert Architecture.of((*architecture.choices(), behind), architecture.layers) == architecture
    assert behind.first_slot == sum(choice.span for choice in architecture.choices())
    assert architecture.unrounded.cache == architecture.cache, "it is no precision of weights"
    assert architecture.with_(Choice.parse("L0.ffn=skip")).cache == architecture.cache
    assert summary(text).endswith(f"; keys and values in {architecture.cache}")


@pytest.mark.parametrize("text", ["cache@q8_0", "kv8+ffn512 cache", "kv8+ffn512 cache@q8_0 tables@q8_0"])
def test_what_is_no_architecture(text: str) -> None:
    with pytest.raises(ValueError, match="cache"):
        Architecture.parse(text)


# What runs, and its bytes


def test_only_attention_that_keeps_keys_and_values_runs_otherwise() -> None:
    block = Choice.parse("L0.block=kv2+ffn8")
    attention, ffn = geometries(block, "q8_0")
    assert [str(attention), str(ffn)] == ["attention.kv2 cache@q8_0", "ffn.ffn8"]
    assert geometries(block, "f16") == geometries(block), "the usual type is the scenario's"
    assert geometries(Choice.parse("L0.attention=linear"), "q8_0") == geometries(Choice.parse("L0.attention=linear"))
    assert {name for name, kind in ATTENTION.items() if kind.keeps_cache} == {"kv", "window"}
    assert not geometries(Choice.parse("L1.cache=cache@q8_0"))
    whole = all_geometries(Architecture.parse("kv2+ffn8 skip+ffn8 cache@q4_0"))
    assert [part.cache for part in whole] == ["", "q4_0", "", ""]


def test_a_table_of_costs_names_it() -> None:
    name = str(Geometry("attention", Choice.parse("L0.attention=kv2@q8_0").subblocks[0][1], "q4_0"))
    table = CostTable(scenario=SCENARIO, hardware="here", geometries={name: GeometryTimes(prefill_s=1.0)})
    ((part, _),) = table.times.items()
    assert (str(part), part.cache) == (name, "q4_0") == ("attention.kv2@q8_0 cache@q4_0", "q4_0")


@pytest.mark.parametrize("kind", TYPES)
def test_the_bytes_of_an_architecture_are_those_of_a_scenario_in_its_type(kind: str, embedded: Parent) -> None:
    whole, shape = parent_architecture(embedded.shape), embedded.shape
    there = architecture_cost(whole, shape, replace(SCENARIO, kv_cache=kind))
    assert architecture_cost(replace(whole, cache=kind), shape, SCENARIO) == there
    with LlamaCpp().random(embedded.model.config, replace(whole, cache=kind), SCENARIO) as model:
        held = GgufFile.of(model.file, SCENARIO.keeping(kind)).held_bytes
        assert model.held_bytes == held == model.file.stat().st_size + there.cache_bytes
        assert model.cache == kind


# The score


def test_numbers_that_were_stored_are_those_of_ggmls_own_blocks() -> None:
    heads_BKTE = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0))
    for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f16", "bf16"):
        type = Type[name.upper()]
        expected = gguf.dequantize(gguf.quantize(heads_BKTE.numpy().reshape(-1, 32), type), type)
        assert torch.equal(stored(heads_BKTE, type, 64), torch.from_numpy(expected).view(heads_BKTE.shape)), name
    assert torch.equal(stored(heads_BKTE, Type.F32, 64), heads_BKTE)


def test_long_heads_are_turned_so_that_outliers_cost_less() -> None:
    matrix = hadamard(64)
    assert torch.allclose(matrix @ matrix, torch.eye(64), atol=1e-6)
    heads = torch.randn(1, 1, 200, 128, generator=torch.Generator().manual_seed(0))
    heads[..., 5] *= 30
    errors = [(stored(part, Type.Q4_0, 64) - part).square().mean() for part in (heads, heads[..., :32])]
    assert errors[0] < errors[1] / 4
    assert torch.allclose(stored(heads, Type.Q8_0, 128), heads, atol=0.5)


def test_scores_grow_as_bytes_fall_and_nothing_stays_changed(embedded: Parent) -> None:
    ids = torch.arange(4 * 64).remainder(2000).view(4, 64)
    before = embedded.model(ids, use_cache=False).logits
    found = score_kv_caches(embedded, ["f32", "f16", "q8_0", "q5_1", "q4_0"], ids, batch=2)
    kls = [found[name].kl for name in ("f32", "f16", "q8_0", "q5_1", "q4_0")]
    assert kls == sorted(kls)
    assert kls[0] == pytest.approx(0, abs=1e-9)
    assert kls[1] < 1e-5 < kls[2] < kls[4] / 10
    with pytest.raises(RuntimeError, match="half-way"), kept_in(KeptType("q4_0")):
        raise RuntimeError("half-way")
    assert torch.equal(embedded.model(ids, use_cache=False).logits, before)


@pytest.mark.parametrize(
    ("family", "head_dim", "interleaved"),
    [(LlamaConfig, 32, True), (LlamaConfig, 64, True), (LlamaConfig, 192, True), (LlamaConfig, 96, True),
     (Qwen3Config, 96, False)],
)  # fmt: skip
def test_torch_rounds_as_llama_cpp_does(family: type[Any], head_dim: int, interleaved: bool) -> None:
    """The engine's next-token probabilities move with the type as torch's do: blocks along the head in the order of the
    file's positions, long heads turned. A Llama's keys lie otherwise in the file, a Qwen3's do not."""
    config = config_of(
        family, hidden_size=64, intermediate_size=96, head_dim=head_dim, num_attention_heads=2, vocab_size=300,
        initializer_range=0.15, num_hidden_layers=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PuzzleNasForCausalLM(config).eval()
    ids = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1))
    engine, ours = {}, {}
    whole = parent_architecture(own_shape(config))
    with LlamaCpp().real(model, replace(SCENARIO, dtype="f32")) as file:
        for cache in ("f32", "q4_0"):
            settings = {"threads": 1, "sequences": 1, "context_tokens": 64, "batch_tokens": 64, "cache": cache}
            asked = {"prompt": ids.tolist(), "n_predict": 1, "n_probs": 300, "temperature": 0}
            with llama_server(file=str(file.file), **settings) as server:
                (answer,) = server.ask("/completion", asked)["completion_probabilities"]
            engine[cache] = torch.zeros(300)
            for each in answer["top_logprobs"]:
                engine[cache][each["id"]] = each["logprob"]
            kept = KeptType.of(replace(whole, cache=cache), config)
            assert kept.interleaved == interleaved
            with torch.no_grad(), kept_in(kept):
                ours[cache] = model(ids[None], use_cache=False).logits[0, -1].log_softmax(-1)
    moved, ours_moved = engine["q4_0"] - engine["f32"], ours["q4_0"] - ours["f32"]
    assert torch.corrcoef(torch.stack([moved, ours_moved]))[0, 1] > 0.95


# Mistakes


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"space": SPACE | {"kv_cache": ["f16", "q9_0"]}}, "space.kv_cache: .*'q9_0'; use one of f16"),
        ({"space": SPACE | {"kv_cache": ["f16", "f16"]}}, "space.kv_cache: f16 is given twice"),
        ({"space": SPACE | {"kv_cache": "q8_0"}}, "space.kv_cache: 'q8_0' is no list"),
        ({"scenario": HOW["scenario"] | {"kv_cache": "q8_0"}}, "space.kv_cache: scenario.kv_cache says"),
        ({"scenario": HOW["scenario"] | {"engine": "torch"}}, "space.kv_cache: the engine torch holds keys"),
    ],
    ids=["unknown", "twice", "no list", "both", "engine"],
)
def test_what_cannot_be_is_told_before_any_work(changed: dict[str, Any], told: str, here: Here, tmp_path: Path) -> None:
    asked = {"space": SPACE, "budget": {"memory": "90%"}} | HOW | changed
    done = here(tmp_path / "home", "search", job(tmp_path, **asked))
    assert done.returncode == 1
    assert re.search(told, the_error(done.stderr)), done.stderr
    assert not (tmp_path / "home/library").exists()


def test_heads_that_are_no_whole_blocks_are_told_before_any_work(here: Here, tmp_path: Path) -> None:
    parent = saved(tmp_path / "parent")  # whose heads have 8 numbers
    asked = HOW | {"space": PLAIN | {"kv_cache": ["f16", "q8_0"]}, "budget": {"memory": "90%"}}
    done = here(tmp_path / "home", "search", job(tmp_path, parent=str(parent), **asked))
    assert "a head has 8; use f16, bf16 or f32" in the_error(done.stderr)
    assert not (tmp_path / "home/library").exists()


# The search


def bytes_of(parent: Parent, cache: str) -> int:
    """The memory of the parent's own shapes with keys and values of that type."""
    whole = replace(parent_architecture(parent.shape), cache=cache)
    held = architecture_cost(whole, parent.shape, SCENARIO)
    return held.weight_bytes + held.cache_bytes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, embedded: Parent) -> Path:
    """The home of a finished search, called kept, whose budget the parent's shapes meet with q8_0 and not with f16."""
    folder = tmp_path_factory.mktemp("kept")
    budget = {"memory": f"{bytes_of(embedded, 'q8_0')} B"}
    done = nas(folder / "home", "search", job(folder, name="kept", space=SPACE, budget=budget, **HOW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; keys and values in q8_0" in done.stdout
    return folder / "home"


def test_where_f16_does_not_fit_q8_0_is_chosen_to_the_byte(home: Path, embedded: Parent) -> None:
    trial = rows(home, "trial")[0]
    architecture = Architecture.parse(trial["architecture"])
    assert architecture == replace(parent_architecture(embedded.shape), cache="q8_0")
    assert trial["predicted_memory_bytes"] == trial["memory_bytes"] == bytes_of(embedded, "q8_0")
    (score,) = (row for row in rows(home, "score") if row["choice"].endswith("cache@q8_0"))
    assert trial["score"] == pytest.approx(score["kl"])
    (file,) = Path(trial["child_path"]).glob("*.gguf")
    held = GgufFile.of(file, SCENARIO.keeping("q8_0")).held_bytes - file.stat().st_size
    assert held == architecture_cost(architecture, embedded.shape, SCENARIO).cache_bytes
    # The child is evaluated with its keys and values rounded, so its KL is about the predicted one, and not 0.
    assert trial["kl"] == pytest.approx(score["kl"], rel=1.0)
    card = Path(trial["child_path"], "README.md").read_text()
    assert "--cache-type-k q8_0" in card


def test_each_type_is_timed_for_attention_alone(home: Path) -> None:
    names = {row["name"] for row in rows(home, "cost")}
    assert {name for name in names if "cache@" in name} == {
        f"attention.kv{heads} cache@{cache}" for heads in (1, 2) for cache in ("q8_0", "q4_0")
    }
    assert all(row["prefill_s"] > 0 for row in rows(home, "cost") if "cache@" in row["name"])


@pytest.mark.parametrize(("less", "cache"), [(0, "f16"), (1, "q8_0")])
def test_another_budget_flips_the_type_without_new_work(
    less: int, cache: str, home: Path, here: Here, embedded: Parent
) -> None:
    before = [len(rows(home, table)) for table in ("score", "cost", "distillation", "stage")]
    done = here(home, "solve", "kept", "--budget", f"memory={bytes_of(embedded, 'f16') - less} B", "--json")
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout)
    assert trial["architecture"] == str(replace(parent_architecture(embedded.shape), cache=cache))
    assert trial["predicted_memory_bytes"] == bytes_of(embedded, cache)
    assert [len(rows(home, table)) for table in ("score", "cost", "distillation", "stage")] == before
    shown = here(home, "show", str(trial["id"]))
    assert f"keys and values in {cache}" in shown.stdout


def test_a_front_and_a_pool_go_over_the_types(home: Path, here: Here) -> None:
    front = json.loads(here(home, "pareto", "kept", "--cost", "memory", "--points", "6", "--json").stdout)
    caches = [Architecture.parse(point["architecture"]).cache for point in front]
    assert caches[0] == "q4_0"
    assert caches[-1] == "f16"
    assert "q8_0" in caches
    done = here(home, "pool", "kept", "--budget", "memory=100%", "--count", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = [each["trial"]["architecture"].rpartition("@")[2] for each in json.loads(done.stdout)["found"]]
    assert found[:2] == ["f16", "q8_0"]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    "question",
    [
        ("solve", "kept", "--budget", "memory=80%", "--refine", "4"),
        ("solve", "kept", "--budget", "memory=80%", "--plain"),
        ("compare", "kept", "--budget", "memory=80%", "--evaluations", "4", "--seeds", "1"),
        ("show", "1"),
        ("costs", "check", "kept", "--children", "2"),
        ("costs", "export", "kept", "--out", "costs.json"),
        ("report", "kept"),
        ("search", "job.yaml"),
    ],
    ids=" ".join,
)
def test_every_question_has_an_answer(
    home: Path, here: Here, question: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.parent if question[0] == "search" else tmp_path)
    done = here(home, *question)
    assert done.returncode == 0, done.stdout + done.stderr
    if question[0] == "report":
        assert "keys and values" in next(tmp_path.glob("*.html")).read_text()
    if question[0] == "search":
        work = [row["work_done"] for row in rows(home, "stage")][-6:]
        assert not any(work), "a second run does nothing"


@pytest.mark.parametrize("space", [{"precision": ["q8_0", "q4_0"]}, {"plain": True}], ids=["precisions", "plain"])
def test_beside_precisions_and_in_plain_children(space: dict[str, Any], tmp_path: Path, embedded: Parent) -> None:
    budget = {"memory": f"{bytes_of(embedded, 'q8_0')} B"}
    asked = job(tmp_path, name="both", space=SPACE | {"attention": []} | space, budget=budget, **HOW)
    done = nas(tmp_path / "home", "search", asked)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = rows(tmp_path / "home", "trial")[:1]
    architecture = Architecture.parse(trial["architecture"])
    assert architecture.cache == "q8_0"
    assert trial["predicted_memory_bytes"] <= bytes_of(embedded, "q8_0")
    assert trial["predicted_memory_bytes"] == trial["memory_bytes"]


def test_a_bench_takes_the_trials_own_type(home: Path) -> None:
    load = {"batch": 1, "prompt_tokens": 5, "generated_tokens": 4, "threads": 1, "rounds": 2}
    db = str(home / "nas.db")
    (engine,) = package.bench([1], load=load, db=db, progress=False).engines
    assert [line.kv_cache for line in engine.lines] == [None, "q8_0"]
    (engine,) = package.bench([1], load=load | {"kv_cache": "q4_0"}, db=db, progress=False).engines
    assert [line.kv_cache for line in engine.lines] == ["q4_0", "q4_0"]


def test_a_server_is_started_with_it(home: Path) -> None:
    with Store.open(home / "nas.db") as store:
        served = child_of(store, store.trial(1), "llama_cpp", Console(quiet=True))
    assert served.kv_cache == "q8_0"
