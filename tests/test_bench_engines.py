"""`nas.bench` times a model in the engine that is asked for, or says what to type."""

from pathlib import Path

import pytest
from checkpoints import tokenizer
from parents import child_of, random_parent
from searches import parent_folder
from stored import add_measured, add_search, add_trial

import nas
from db.store import Store
from nas.errors import UsageError
from nas.export.decilm import export_decilm
from nas.export.hf import export_hf

LOAD = {"prompt_tokens": 5, "generated_tokens": 4, "threads": 1, "rounds": 2}


@pytest.mark.parametrize("engine", ["vllm", "torch"])
def test_a_trial_that_cannot_be_timed_as_it_was_searched_names_what_to_type(tmp_path: Path, engine: str) -> None:
    with Store.open(tmp_path / "nas.db") as store:
        search = add_search(store, tmp_path)
        add_measured(store, search)
        search.scenario = search.scenario | {"engine": engine, "device": "cuda"}
        store.add_search(search)
        trial = add_trial(store, search, "latency=70%", factor=1.0)
    said = rf"trial {trial.id} was searched for {engine} on cuda; give --device cuda, or .*: --engine torch or "
    with pytest.raises(UsageError, match=said):
        nas.bench([trial.id], load=LOAD, db=tmp_path / "nas.db", progress=False)


def test_a_child_and_its_parent_are_timed_compiled(tmp_path: Path) -> None:
    child = child_of(random_parent("mistral", num_hidden_layers=2), "kv1+ffn16 skip+ffn32")
    export_hf(child, tokenizer(), tmp_path / "child", "# A child\n")
    children = [tmp_path / "child", parent_folder()]
    (group,) = nas.bench(children, engine="torch_compile", load=LOAD, progress=False).engines
    assert (group.engine, group.version.endswith("compiled")) == ("torch_compile", True)
    assert [line.name for line in group.lines] == ["child", parent_folder().name]
    assert all(figure.value > 0 for line in group.lines for figure in line.figures.values())


def test_a_decilm_folder_is_timed_without_its_own_code(tmp_path: Path) -> None:
    child = child_of(random_parent("mistral", num_hidden_layers=2), "kv1+ffn16 skip+ffn32")
    export_decilm(child, tokenizer(), tmp_path / "child", "# A child\n")
    for file in (tmp_path / "child").glob("*.py"):
        file.write_text("raise SystemExit('the code of the folder ran')")
    (group,) = nas.bench([tmp_path / "child"], load=LOAD, progress=False).engines
    assert (group.engine, group.lines[0].weights) == ("torch", "float32")
    assert all(figure.value > 0 for figure in group.lines[0].figures.values())


def test_an_engine_that_runs_no_folder_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="runs in torch or torch_compile or vllm here, not in llama_cpp"):
        nas.bench([parent_folder()], engine="llama_cpp", load=LOAD, progress=False)
