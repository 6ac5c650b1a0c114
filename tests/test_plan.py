"""A plan says what each stage needs from sizes alone, and which settings make it fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nas
from blocklib.checkpoint import inspect
from blocklib.kinds import parameters, parent_architecture
from cost_models.hardware import total_bytes
from nas.cli.main import app
from nas.errors import JobError, PlanError
from nas.job import config
from nas.planning.hardware import Hardware, machine_named
from nas.planning.inputs import PlanInputs
from nas.planning.look import inputs_of_job
from nas.planning.need import total
from nas.planning.plan import LAYERS, layers_per_task, needs_recomputing, plan
from nas.stages.feasible import check_parent

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
JOB = "parent: nowhere/at-all\ndata: {train: [not-there.txt]}\nbudget: {parameters: 60%}\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "llama.config.json"
    path.write_text(json.dumps(LLAMA_8B))
    return path


@pytest.fixture
def inputs(job: Path, config_file: Path) -> PlanInputs:
    return inputs_of_job(config.load(job, reads_text=False, parent="embedded"), "h100x8", config_file)


def test_a_parent_and_a_text_that_are_not_here_are_planned_for(job: Path, config_file: Path) -> None:
    found = nas.plan(job, hardware="h100x8", parent_config=config_file, progress=False)
    assert [stage.need.stage for stage in found.stages] == [
        "distil", "score", "measure", "time the child", "heal", "export",
    ]  # fmt: skip
    assert all(stage.need.main_bytes(found.machine) > 0 for stage in found.stages)
    heal = found.stages[4].as_asked
    # Float32 weights, gradients and two moments of 60 % of 8.03 billion, and a parent in 16 bits.
    assert 16 * 0.6 * 8.03e9 * 0.9 < heal.device_bytes(found.machine) < 1.3 * (16 * 0.6 + 2) * 8.03e9
    assert found.stages[4].changes
    assert found.fits


def test_sizes_are_those_of_the_parent(inputs: PlanInputs) -> None:
    shape = inputs.shape
    assert inputs.parent_parameters == parameters(parent_architecture(shape), shape) == 8_030_261_248
    assert inputs.parent_bytes == 2 * inputs.parent_parameters, "stored in bfloat16"
    assert inputs.child_parameters == 0.6 * inputs.parent_parameters
    assert {inputs.projection(part)[0] for part in inputs.to_build if part.role == "attention"} == {4096}
    fused = [part for part in inputs.to_build if part.span == 5]
    assert inputs.projection(fused[0]) == (3 * 14336, 4096)


def test_the_settings_that_fit_do(inputs: PlanInputs) -> None:
    for stage in plan(inputs).stages:
        assert bool(stage.changes or stage.reason) == (
            stage.as_asked.device_bytes(inputs.machine) > 0.95 * inputs.machine.device_bytes
        )
        if stage.changes:
            again = plan(inputs.changed(stage.changes))
            assert [same.changes for same in again.stages if same.need.stage == stage.need.stage] == [{}]


def test_fewer_layers_at_once_take_less(inputs: PlanInputs) -> None:
    roomy = replace(inputs.machine, device_bytes=1 << 50)
    held = [
        total(stage.need.each)
        for layers in (1, 2, 8)
        for stage in plan(replace(inputs, machine=roomy).changed({LAYERS: layers})).stages[:1]
    ]
    assert held == sorted(held)
    assert layers_per_task(replace(inputs, machine=roomy)) is None


def test_a_task_takes_as_many_layers_as_fit(inputs: PlanInputs) -> None:
    alone = replace(inputs.changed({"space.fuse": None}), machine=machine_named("h100"))
    layers = layers_per_task(alone)
    assert layers is not None
    assert 1 <= layers < 32
    assert plan(alone.changed({LAYERS: layers})).stages[0].changes == {}


def test_a_parent_too_large_for_a_gpu_stays_in_main_memory(inputs: PlanInputs) -> None:
    small = replace(inputs, machine=machine_named("l4"))
    assert not inputs.is_mapped
    assert small.is_mapped
    need = plan(small).stages[1].need
    assert total(need.once) < inputs.parent_bytes / 5
    assert need.moved_bytes > inputs.parent_bytes * 0.8
    assert need.main_bytes(small.machine) > inputs.parent_bytes


def test_work_is_what_passes_take(inputs: PlanInputs) -> None:
    """The scores of an option at the first slot cost a whole pass, at the last only its end and the head."""
    need = plan(inputs).stages[1].need
    tokens, options = inputs.request.data.score_tokens, len(inputs.to_score)
    whole = 2.0 * inputs.parent_parameters * tokens
    assert 0.4 * options * whole < need.flops < 0.8 * options * whole


def test_hardware_that_is_not_known_is_named(job: Path, config_file: Path) -> None:
    for name in ("h101", "h100x0", "x8", ""):
        with pytest.raises(PlanError, match=r"is no known GPU.*h100"):
            nas.plan(job, hardware=name, parent_config=config_file, progress=False)
    assert machine_named("H100x64").devices == 64


def test_gpus_are_not_planned_for_an_engine_of_cpus(tmp_path: Path, config_file: Path) -> None:
    job = tmp_path / "gguf.yaml"
    job.write_text(JOB + "export: {format: gguf}\n")
    with pytest.raises(PlanError, match=r"gguf is served by llama\.cpp on a CPU"):
        nas.plan(job, hardware="h100", parent_config=config_file, progress=False)


def test_an_8b_is_healed_on_one_gpu(inputs: PlanInputs) -> None:
    """Adapters alone are trained, and activations are computed twice."""
    alone = replace(inputs, machine=machine_named("h100"))
    heal = plan(alone).stages[4]
    assert heal.settings == "heal.recompute: true, heal.lora_rank: 64"
    assert not heal.reason
    # Recomputing changes no result, so a search does it by itself; training adapters does, and is only said.
    assert not needs_recomputing(alone)
    just_too_small = replace(alone.machine, device_bytes=round(heal.as_asked.device_bytes(alone.machine)))
    assert needs_recomputing(replace(alone, machine=just_too_small))


def test_a_search_that_cannot_fit_is_refused_with_the_key() -> None:
    """One layer's activations would fit, and those of all layers do not."""
    request = config.parse("parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\n", "job.yaml")
    checkpoint = inspect(Path(request.checkpoint))
    check_parent(request, checkpoint, is_here=True)
    sizes = checkpoint.config["hidden_size"] + checkpoint.config["intermediate_size"]
    batch = total_bytes(torch.device("cpu")) // (2 * 4 * sizes * request.data.sequence_length)
    data = request.data.model_copy(update={"distillation_tokens": batch * request.data.sequence_length})
    assert request.heal is not None
    wide = request.model_copy(update={"heal": request.heal.model_copy(update={"batch": batch}), "data": data})
    with pytest.raises(
        JobError,
        match=r"^heal\.batch: the stage heal is planned to take .*; give heal\.recompute: true, heal\.batch: \d+ \(",
    ):
        check_parent(wide, checkpoint, is_here=True)


def test_the_command_prints_what_it_knows(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\n")
    plain = CliRunner().invoke(app, ["plan", str(job), "--json"])
    assert plain.exit_code == 0, plain.output
    told = json.loads(plain.stdout)
    assert told["fits"]
    assert [stage["stage"] for stage in told["stages"]][:2] == ["distil", "score"]
    shown = CliRunner().invoke(app, ["plan", str(job)])
    assert "this machine" in shown.stdout
    assert "in all: " in shown.stdout


def test_a_plan_is_of_one_machine() -> None:
    cpu = Hardware("cpu", 2, 1 << 34, 1e11, is_cpu=True)
    request = config.parse("parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\n", "job.yaml")
    here = replace(inputs_of_job(request, None, None), machine=cpu)
    need = plan(here).stages[0].need
    assert need.device_bytes(cpu) == need.main_bytes(cpu)
    assert here.places == 2


@pytest.mark.parametrize(
    "changed",
    [
        "distill: {tokens: 0}",
        "distill: {least_squares: false}",
        "heal: null",
        "space: {attention: [skip], ffn: [], fuse: null, drop_blocks: false}",
        "space: {attention: [], ffn: [], fuse: null, drop_blocks: true}",
        "space: {attention: [linear], ffn: [moe4x108k2, fff2x108, pkm4x2k2, dip50], fuse: null}",
        "space: {pairs: true, parallel: 2}",
        "space: {attention: [], ffn: [], fuse: null, drop_blocks: false, precision: [q8_0]}\nexport: {format: gguf}",
        "space: {precision: [q8_0, q4_0]}\nexport: {format: gguf}",
        "scenario: {batch: 1, flash: {dram: 2 MB, dram_speed: 1 GB, flash_speed: 1 MB}}",
    ],
)
def test_every_job_has_a_plan(changed: str) -> None:
    job = f"parent: embedded\ndata: {{train: stdlib}}\nbudget: {{memory: 60%}}\n{changed}\n"
    inputs = replace(inputs_of_job(config.parse(job, "job.yaml"), None, None), machine=machine_named("l4"))
    for stage in plan(inputs).stages:
        need = stage.need
        assert stage.as_asked == need
        assert need.main_bytes(inputs.machine) > 0
        assert need.largest().held_bytes > 0
        assert need.seconds(inputs.machine) >= 0
    stages = [stage.need.stage for stage in plan(inputs).stages]
    assert ("heal" in stages) == (inputs.request.heal is not None)
    assert ("distil" in stages) == bool(inputs.to_build)
    assert ("measure" in stages) == (inputs.request.scenario.flash is None)
