"""A plan says what each stage needs from sizes alone, and which settings make it fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import rewrite
from parents import FAMILIES, random_model
from typer.testing import CliRunner

import nas
from blocklib.checkpoint import bytes_of_a_number, inspect
from blocklib.compute_dtype import converted_numbers
from blocklib.kinds import parameters, parent_architecture
from blocklib.loading import readable
from blocklib.parent import load_parent
from nas.cli.main import app
from nas.errors import JobError, PlanError
from nas.job import config
from nas.planning.hardware import Hardware, machine_named, memory_here
from nas.planning.inputs import PlanInputs
from nas.planning.look import inputs_of, inputs_of_job
from nas.planning.need import total
from nas.planning.plan import LAYERS, layers_per_task, needs_recomputing, plan
from nas.stages.check_plan import plan_warnings
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
    roomy = replace(inputs, machine=replace(inputs.machine, device_bytes=1 << 50))
    one, two, eight = (total(plan(roomy.changed({LAYERS: layers})).stages[0].need.each) for layers in (1, 2, 8))
    assert one < two < eight
    assert layers_per_task(roomy, "distil") is None


def test_a_task_takes_the_layers_with_which_it_is_done_first(inputs: PlanInputs) -> None:
    alone = replace(inputs.changed({"space.fuse": None}), machine=machine_named("h100x2"))
    layers = layers_per_task(alone, "distil")
    assert layers is not None
    assert 1 <= layers < 32
    chosen = plan(alone.changed({LAYERS: layers})).stages[0]
    assert chosen.changes == {}
    seconds = []
    for other in range(1, 32):
        (need, *_) = plan(alone.changed({LAYERS: other})).stages
        if need.as_asked.device_bytes(alone.machine) <= 0.95 * alone.machine.device_bytes:
            seconds.append(need.as_asked.seconds(alone.machine))
    assert chosen.need.seconds(alone.machine) == min(seconds)


def test_a_parent_too_large_for_a_gpu_stays_in_main_memory(inputs: PlanInputs) -> None:
    small = replace(inputs, machine=machine_named("l4"))
    assert not inputs.is_mapped
    assert small.is_mapped
    need = plan(small).stages[1].need
    assert total(need.once) < inputs.parent_bytes / 5
    assert need.work.moved_bytes > inputs.parent_bytes * 0.8
    assert need.main_bytes(small.machine) > inputs.parent_bytes


def test_the_parent_runs_beforehand_only_where_that_is_less(inputs: PlanInputs) -> None:
    """Over text that tasks train on; not where they train on little of it, or the disk is small."""
    groups = [[part for part in inputs.to_build if part.end_layer == layers] for layers in (4, 32)]
    text = inputs.request.data.distillation_tokens
    assert inputs.caches_training(groups)
    assert not replace(inputs, machine=replace(inputs.machine, disk_bytes=10**9)).caches_training(groups)
    for tokens, caches in ((0, False), (text // 2, False), (9 * text // 10, True), (4 * text, True)):
        distill = inputs.request.distill.model_copy(update={"tokens": tokens})
        asked = replace(inputs, request=inputs.request.model_copy(update={"distill": distill}))
        assert asked.caches_training(groups) == caches, tokens
    held = {each.what: each.held_bytes for each in plan(inputs).stages[0].need.disk}
    numbers = text * inputs.shape.hidden * inputs.shape.layers
    assert held["the parent's activations on the training text"] == 9 * numbers


def test_work_is_what_passes_take(inputs: PlanInputs) -> None:
    """The scores of an option at the first slot cost a whole pass, at the last only its end and the head."""
    need = plan(inputs).stages[1].need
    tokens, options = inputs.request.data.score_tokens, len(inputs.to_score)
    whole = 2.0 * inputs.parent_parameters * tokens
    assert 0.4 * options * whole < need.work.flops < 0.8 * options * whole


@pytest.mark.parametrize(("precision", "faster"), [("tf32", 3.9), ("bfloat16", 7.9)])
def test_products_in_another_type_are_faster(
    precision: str, faster: float, inputs: PlanInputs, job: Path, config_file: Path
) -> None:
    job.write_text(f"{JOB}scenario: {{device: cuda}}\ncompute: {{precision: {precision}}}\n")
    request = config.load(job, reads_text=False, parent="embedded")
    there = inputs_of_job(request, "h100x8", config_file)
    before, after = (plan(each).stages[1].as_asked for each in (inputs, there))
    assert after.work.flops == before.work.flops
    assert before.seconds(inputs.machine) / after.seconds(there.machine) == pytest.approx(faster, rel=0.02)
    heals = [plan(each).stages[4].as_asked for each in (inputs, there)]
    assert heals[1].seconds(there.machine) < heals[0].seconds(inputs.machine) / 3
    # A parent in bfloat16 is read as it is; one in float32 is converted.
    assert (there.head_bytes == 0) == (precision == "bfloat16")
    assert replace(there, stored_bytes=4).head_bytes == (
        2 * converted_numbers(128256 * 4096) if precision == "bfloat16" else 0
    )


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


def healing(batches: float) -> PlanInputs:
    """The embedded parent, healed in batches whose activations are planned to fill this machine so often."""
    text = "parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\nheal: {batch: 1, recompute: false}\n"
    one = replace(inputs_of_job(config.parse(text, "job.yaml"), None, None), machine=memory_here("cpu", Path()))
    (heal,) = (stage.need for stage in plan(one).stages if stage.need.stage == "heal")
    (each,) = (held.held_bytes for held in heal.each if held.key == "heal.batch")
    batch = int(batches * one.machine.device_bytes / each)
    return one.changed({"heal.batch": batch, "data.distillation_tokens": batch * one.sequence})


def test_a_search_that_cannot_fit_is_refused_with_the_key() -> None:
    request = healing(30).changed({"heal.recompute": None}).request
    checkpoint = inspect(Path(request.checkpoint))
    with pytest.raises(JobError, match=r"^heal\.accumulate: the stage heal is planned to take .*; it fits with heal\."):
        check_parent(request, checkpoint, is_here=True)


def test_a_search_that_may_not_fit_is_warned() -> None:
    """A plan is an estimate, and no reason to refuse what might just fit."""
    inputs = healing(1.2)
    check_parent(inputs.request, inspect(Path(inputs.request.checkpoint)), is_here=True)
    (told,) = plan_warnings(inputs)
    assert told.startswith("memory may run out: the stage heal is planned to take ")
    assert "; it fits with heal.recompute: true (see nas plan)" in told
    assert plan_warnings(healing(0.5)) == []
    # Where the job leaves it open, the search does it by itself.
    assert plan_warnings(inputs.changed({"heal.recompute": None})) == []


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


def on_cpus(cores: int, gib: int, changed: str = "") -> PlanInputs:
    machine = Hardware("cpu", cores, gib << 30, 1e11, 5e10, gib << 30, is_cpu=True)
    text = f"parent: embedded\ndata: {{train: stdlib}}\nbudget: {{latency: 60%}}\n{changed}\n"
    request = config.parse(text, "job.yaml")
    return inputs_of(request, readable(inspect(Path(request.checkpoint))), machine)


def test_cores_that_tasks_do_not_have_do_not_work() -> None:
    half, two, four = (on_cpus(2, 64, f"ray: {{cpus_per_task: {cores}}}") for cores in (0.5, 1, 2))
    assert [inputs.places for inputs in (half, two, four)] == [4, 2, 1]
    seconds = [plan(inputs).stages[1].need.seconds(inputs.machine) for inputs in (half, two, four)]
    assert max(seconds) < 1.3 * min(seconds), "the same cores do the same work"
    idle = on_cpus(64, 64, "ray: {layers_per_task: 5}")
    assert plan(idle).stages[0].need.tasks.together == 2
    busy = on_cpus(64, 640)
    assert plan(idle).stages[0].need.seconds(idle.machine) > 3 * plan(busy).stages[0].need.seconds(busy.machine)
    heal = plan(idle).stages[4].need
    assert heal.seconds(idle.machine) == pytest.approx(heal.work.flops / 1e11), "alone, on all cores"


def test_memory_of_a_cpu_is_that_of_all_tasks() -> None:
    one, two = (plan(on_cpus(cores, 64)).stages[1].need for cores in (1, 2))
    more = two.main_bytes(on_cpus(2, 64).machine) - one.main_bytes(on_cpus(1, 64).machine)
    assert more > 0.4e9, "another worker, with what it holds"


def test_tasks_that_share_a_gpu_share_its_memory(job: Path, config_file: Path) -> None:
    shared = inputs_of_job(config.load(job, reads_text=False, parent="embedded"), "h100", config_file)
    shared = shared.changed({"ray.gpus_per_task": 0.5})
    roomy = replace(shared.machine, device_bytes=1 << 50)
    halves, whole = (
        plan(replace(shared, machine=roomy).changed({"ray.gpus_per_task": share, LAYERS: 4})).stages[0].need
        for share in (0.5, 1)
    )
    assert halves.device_bytes(roomy) == pytest.approx(2 * whole.device_bytes(roomy), rel=0.01)


def test_two_kinds_of_device_have_no_plan(tmp_path: Path, config_file: Path) -> None:
    job = tmp_path / "two.yaml"
    job.write_text(JOB + "ray: {gpus_per_task: 1}\n")
    with pytest.raises(PlanError, match="two trains on one kind of device and serves on another"):
        nas.plan(job, parent_config=config_file, progress=False)


def test_a_small_gpu_holds_the_rows_that_there_are() -> None:
    small = replace(on_cpus(1, 8, "scenario: {device: cuda}"), machine=Hardware("gpu", 1, 8 << 30, 1e13, 1e12))
    assert plan(small).fits
    assert not any(stage.changes for stage in plan(small).stages)


def test_main_memory_is_looked_at_where_it_is_known(inputs: PlanInputs) -> None:
    assert not plan(inputs).stages[-1].reason
    scarce = replace(inputs, machine=replace(inputs.machine, main_bytes=16 << 30))
    assert plan(scarce).stages[-1].reason == "the child, from its file (budget)"
    told = plan_warnings(scarce)[-1]
    assert told.startswith("memory may run out: the stage export is planned to take ")
    assert " of 16.0 GiB; most of it is the child, from its file (budget)" in told


def test_types_are_counted_by_number(tmp_path: Path) -> None:
    """Norms in float32 make no parent of float32; torch's old format says its types otherwise."""
    model = random_model(FAMILIES["llama"]()).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "new")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    for folder in (tmp_path / "new", tmp_path):
        assert bytes_of_a_number(readable(inspect(folder)).tensors.values()) == 2
        assert load_parent(str(folder)).stored_bytes == 2
    rewrite(tmp_path / "new", lambda weights: weights.update({n: t.float() for n, t in weights.items() if t.ndim == 1}))
    assert 2 < bytes_of_a_number(readable(inspect(tmp_path / "new")).tensors.values()) < 2.1


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
    inputs = replace(inputs_of_job(config.parse(job, "job.yaml"), None, None), machine=on_cpus(2, 16).machine)
    for stage in plan(inputs).stages:
        need = stage.need
        assert stage.as_asked == need
        assert need.main_bytes(inputs.machine) > 0
        assert need.largest(inputs.machine).held_bytes > 0
        assert need.seconds(inputs.machine) >= 0
    stages = [stage.need.stage for stage in plan(inputs).stages]
    assert ("heal" in stages) == (inputs.request.heal is not None)
    assert ("distil" in stages) == bool(inputs.to_build)
    assert ("measure" in stages) == (inputs.request.scenario.flash is None)


def test_workers_divide_what_is_trained(inputs: PlanInputs) -> None:
    """Weights, gradients and moments of a child of 4.8 billion, and a batch: first in workers, then in parts."""
    whole = {held.what: held.held_bytes for held in plan(inputs).stages[4].as_asked.each}
    asked = inputs.changed({"heal.workers": 4, "heal.accumulate": 2})
    need = plan(asked).stages[4].as_asked
    each = {held.what: held.held_bytes for held in need.each}
    for what, parts in {
        "the child, in float32": 4,
        "gradients, and Adam's moments": 4,
        "activations of all layers": 8,
    }.items():
        assert each[what] == pytest.approx(whole[what] / parts)
    assert need.seconds(asked.machine) == pytest.approx(plan(inputs).stages[4].as_asked.seconds(inputs.machine) / 4)


def test_a_child_that_one_gpu_cannot_train_is_planned_for_several(inputs: PlanInputs) -> None:
    heal = plan(inputs).stages[4]
    assert heal.settings == "heal.recompute: true, heal.workers: 2"
    assert not plan(inputs.changed(heal.changes)).stages[4].changes
