"""Costs measured elsewhere: a search that reads them gives the answer of one that measured them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from held_device import held_until_told
from parents import FAMILIES, random_model
from typer.testing import CliRunner

import nas
from blocklib.checkpoint import inspect
from cost_models.scenario import Scenario
from nas.cli.main import app
from nas.errors import JobError, MissingFileError, TableError
from nas.job import config
from nas.stages.cost_table import read_cost_table
from nas.stages.feasible import check_parent

SCENARIO = {"batch": 1, "prompt_tokens": 8, "generated_tokens": 3, "threads": 1}
SPACE = {"attention": ["kv1", "skip"], "ffn": ["50%"], "fuse": None, "drop_blocks": False}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    random_model(FAMILIES["llama"](num_hidden_layers=2)).save_pretrained(folder)
    return folder


def job(parent: Path, **changed: Any) -> Any:
    values: dict[str, Any] = {"name": "table", "parent": str(parent), "data": {"train": "stdlib"},
                              "budget": {"latency": "80%"}, "scenario": SCENARIO, "space": SPACE,
                              "measure": {"time_limit": "0.1 s"}}  # fmt: skip
    return config.restored(values | changed, "job.yaml")


@pytest.fixture(scope="module")
def measured(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table") / "costs.json"
    nas.measure(job(parent), out, progress=False)
    return out


def test_a_table_holds_every_geometry_of_the_space(measured: Path) -> None:
    table = read_cost_table(measured)
    assert set(table.geometries) == {"fixed", "attention.kv4", "ffn.ffn48", "attention.kv1", "ffn.ffn24"}
    assert table.scenario.prompt_tokens == 8
    assert "torch" in table.hardware


def test_a_table_that_is_whole_is_left_as_it_is(parent: Path, measured: Path) -> None:
    before = measured.read_bytes()
    nas.measure(job(parent), measured, progress=False)
    assert measured.read_bytes() == before


def test_only_what_a_table_lacks_is_measured(parent: Path, measured: Path, tmp_path: Path) -> None:
    held = json.loads(measured.read_text())
    del held["geometries"]["attention.kv1"]
    part = tmp_path / "part.json"
    part.write_text(json.dumps(held))
    nas.measure(job(parent), part, progress=False)
    whole = read_cost_table(part)
    assert "attention.kv1" in whole.geometries
    assert whole.geometries["fixed"] == read_cost_table(measured).geometries["fixed"]


def test_without_one_of_the_parents_own_parts_all_is_measured_again(
    parent: Path, measured: Path, tmp_path: Path
) -> None:
    """Times are relative to the parent's own, so old ones cannot stand beside a new one of these."""
    held, told = json.loads(measured.read_text()), list[str]()
    held["geometries"]["attention.kv2"] = held["geometries"]["attention.kv1"]  # another job's
    own = held["geometries"].pop("ffn.ffn48")
    part = tmp_path / "part.json"
    part.write_text(json.dumps(held))
    hasty = {"time_limit": "0.1 s", "patience": "1 s"}
    nas.measure(job(parent, measure=hasty), part, progress=told.append)
    again = json.loads(part.read_text())["geometries"]
    assert again.keys() == {*held["geometries"], "ffn.ffn48"}
    old = held["geometries"] | {"ffn.ffn48": own}
    assert [name for name, times in again.items() if times["prefill_s"] == old[name]["prefill_s"]] == []
    assert [line for line in told if "lacks the parent's own ffn.ffn48" in line]


def test_noisy_times_that_stand_in_a_table_are_told(parent: Path, measured: Path, tmp_path: Path) -> None:
    held, told = json.loads(measured.read_text()), list[str]()
    held["geometries"]["attention.kv1"]["spread"] = 0.9
    noisy = tmp_path / "noisy.json"
    noisy.write_text(json.dumps(held))
    nas.measure(job(parent), noisy, progress=told.append)
    assert [line for line in told if line.startswith("attention.kv1 has a spread of 90.0%")]


def test_a_wait_for_another_search_is_told(parent: Path, measured: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with held_until_told(told) as heard:
        nas.measure(job(parent, space=SPACE | {"ffn": []}), tmp_path / "costs.json", progress=heard)
    assert [line for line in told if line.startswith("measure costs: waiting: another search (process ")]


def test_another_engine_is_measured_with_its_usual_type(parent: Path) -> None:
    request = config.served_by(job(parent), "llama_cpp", None)
    assert (request.engine, request.dtype) == ("llama_cpp", "q8_0")
    with pytest.raises(JobError, match="the engine llama_cpp has no 'float32'"):
        config.served_by(job(parent), "llama_cpp", "float32")


def test_a_missing_geometry_is_named(measured: Path) -> None:
    from blocklib.block import Subblock
    from cost_models.geometry import Geometry

    wanted = [Geometry("ffn", Subblock("ffn", "7")), Geometry("attention", Subblock("linear"))]
    with pytest.raises(TableError, match=r"no times of ffn\.ffn7, attention\.linear"):
        read_cost_table(measured).measured(wanted, measured)


def test_a_table_of_another_parent_is_refused(measured: Path) -> None:
    table = read_cost_table(measured)
    assert table.shape is not None
    with pytest.raises(TableError, match=r"for another parent: hidden \d+, not 7"):
        table.check_shape(table.shape | {"hidden": 7}, measured)
    table.model_copy(update={"shape": None}).check_shape({"hidden": 7}, measured)


def test_times_that_another_job_does_not_need_stay(parent: Path, measured: Path, tmp_path: Path) -> None:
    shared = tmp_path / "costs.json"
    shared.write_bytes(measured.read_bytes())
    nas.measure(job(parent, space=SPACE | {"attention": ["linear"], "ffn": []}), shared, progress=False)
    assert read_cost_table(shared).geometries.keys() == {*read_cost_table(measured).geometries, "attention.linear"}


def test_the_machine_that_builds_may_have_fewer_cores_than_the_one_that_serves(parent: Path, measured: Path) -> None:
    asked = {
        "parent": parent,
        "scenario": SCENARIO | {"threads": 4096},
        "data": {"train": "stdlib", "sequence_length": 32},
    }
    with pytest.raises(JobError, match="4,096 threads"):
        check_parent(job(**asked), inspect(parent), is_here=True)
    with pytest.raises(MissingFileError, match="holds no tokenizer"):  # the next check: this parent has none
        check_parent(job(**asked, measure={"table": str(measured)}), inspect(parent), is_here=True)


def test_measuring_needs_no_text(parent: Path, measured: Path, tmp_path: Path) -> None:
    values = job(parent).canonical() | {"data": {"train": ["not-copied/*.txt"]}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    nas.measure(tmp_path / "job.yaml", measured, progress=False)
    with pytest.raises(JobError, match="not-copied"):
        config.load(tmp_path / "job.yaml")


def test_another_scenario_is_told(measured: Path) -> None:
    asked = Scenario("cpu", "float32", 4, 8, 3, 1)
    with pytest.raises(TableError, match="another scenario: batch 1, not 4"):
        read_cost_table(measured).check_scenario(asked, measured)


FULL = SCENARIO | {"device": "cpu", "dtype": "float32"}
WRONG = [
    ("{", "JSON"),
    ('{"scenario": {}, "hardware": "x", "geometries": {}}', r"json: scenario\.device: Field required"),
    ('{"hardware": "x", "hardware": "y"}', "json: hardware is given twice"),
    ('{"geometries": {"ffn.ffn8": {"prefill_s": 1}, "ffn.ffn8": {"prefill_s": 2}}}', r"ffn\.ffn8 is given twice"),
    (dict(hardware=3), "hardware: Input should be a valid string"),
    (dict(geometries={"ffn.ffn8": {"prefill_s": -1.0}}), r"geometries\.ffn\.ffn8\.prefill_s: .*greater than or equal"),
    (dict(geometries={"ffn.ffn8": {"prefill_s": 1.0, "seconds": 2}}), "Extra inputs are not permitted"),
    (dict(geometries={"mlp.ffn8": {"prefill_s": 1.0}}), r"json: geometries\.mlp\.ffn8: .* named like attention.kv8"),
    (dict(geometries={"ffn.8ffn": {"prefill_s": 1.0}}), r"json: geometries\.ffn\.8ffn: "),
    (dict(scenario=FULL | {"batch": "4"}), r"json: scenario\.batch: Input should be a valid integer"),
    (dict(scenario=FULL | {"batch": 1.5}), r"json: scenario\.batch: Input should be a valid integer"),
    (dict(scenario=FULL | {"threads": True}), r"json: scenario\.threads: Input should be a valid integer"),
    (dict(scenario=FULL | {"batch": 0}), r"json: scenario: batch is 0; it must be at least 1"),
    (dict(scenario=FULL | {"dtype": "f99"}), "scenario: dtype 'f99' is not supported by the engine torch"),
    (dict(scenario=FULL | {"seed": 1}), r"scenario\.seed: Unexpected keyword argument"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_is_no_table_is_refused_with_its_place(wrong: Any, said: str, measured: Path, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    text = wrong if isinstance(wrong, str) else json.dumps(json.loads(measured.read_text()) | wrong)
    file.write_text(text)
    with pytest.raises(TableError, match=said):
        read_cost_table(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        read_cost_table(tmp_path / "costs.json")


def test_the_command_says_what_to_write_into_the_job(parent: Path, measured: Path, tmp_path: Path) -> None:
    written = tmp_path / "job.yaml"
    written.write_text(yaml.safe_dump(job(parent).canonical()))
    done = CliRunner().invoke(app, ["measure", str(written), "--out", str(measured)])
    assert done.exit_code == 0, done.output
    assert "measure: {table: costs.json}" in done.output
