"""Passes that multiply in bfloat16: what is rounded, what is not, and what a search makes of it."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parents import FAMILIES, child_of, first_weights_of, logits, random_ids, random_model, random_parent, texts_of
from searches import Here, files, job, outcome, rows
from test_every_kind import SPELLINGS, architecture_with, distilled, of_kind
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blocklib.activations import ComputedActivations
from blocklib.assemble import assemble, parent_part
from blocklib.block import Choice
from blocklib.distil import Training, distil
from blocklib.errors import NotFiniteError, SettingError
from blocklib.kind import Weights
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from blocklib.products import gradients_of, multiply_in, products_of
from blocklib.stream import slots
from nas.errors import JobError
from nas.job import config
from nas.job.digest import digest
from nas.scoring.fidelity import Fidelity
from nas.scoring.rank_correlation import spearman
from nas.scoring.replace_one import score
from nas.stages.evaluate import evaluate
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing, HealingRun
from nas.stages.prepare import prepare

SHORT = Healing(tokens=10 * 4 * 12, batch=4, learning_rate=1e-3, warmup=0.1, hidden_weight=1.0)
CHILD = "skip+ffn48 kv1+ffn16 linear+ffn48 kv4+fuse(ffn48,ffn48) kv2+ffn48"
JOB = "parent: embedded\ndata: {train: stdlib}\nbudget: {parameters: 60%}\n"


def in_bfloat16(family: str = "llama") -> Parent:
    return replace(random_parent(family), products="bfloat16")


def scores(parent: Parent, weights: dict[Choice, Weights], ids_BT: Tensor) -> dict[Choice, Fidelity]:
    *_, found = score(parent, weights, ComputedActivations(parent.model, ids_BT))
    assert isinstance(found, dict)
    return found


def multiplying(parent: Parent, spelling: str) -> PuzzleNasForCausalLM:
    """A child with first weights of its own, which multiplies as its parent does."""
    return deepcopy(multiply_in(parent.products, child_of(parent, spelling)))


def inputs_seen(model: nn.Module, name: str, ids_BT: Tensor) -> set[torch.dtype]:
    """The types of what enters the modules of that name, in a pass."""
    seen: set[torch.dtype] = set()
    for each, module in model.named_modules():
        if each.endswith(name):
            module.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    logits(model, ids_BT)
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_what_is_not_a_product_stays_in_float32(family: str) -> None:
    parent = in_bfloat16(family)
    ids = random_ids(parent)
    passed = list(slots(parent.model, ids, 2 * parent.shape.layers))
    assert {each.dtype for one in passed for each in (one.entering_BTD, one.delta_BTD)} == {torch.float32}
    assert inputs_seen(parent.model, "layernorm", ids) == {torch.float32}
    assert inputs_seen(parent.model, "down_proj", ids) == {torch.bfloat16}
    assert logits(parent.model, ids).dtype == torch.float32
    norms = [module for name, module in parent.model.named_modules() if name.endswith("layernorm")]
    assert {norm.get_parameter("weight").dtype for norm in norms} == {torch.float32}


def test_a_parent_in_bfloat16_needs_no_converted_copy(tmp_path: Path) -> None:
    random_model(FAMILIES["llama"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    parent = load_parent(str(tmp_path))
    stored = replace(parent, products="bfloat16")
    assert stored.digest == parent.digest
    matrices = [module for module in stored.model.modules() if isinstance(module, nn.Linear)]
    assert not any(parametrize.is_parametrized(matrix, "weight") for matrix in matrices)
    assert {matrix.weight.dtype for matrix in matrices} == {torch.bfloat16}
    assert stored.layer_weights(0)["mlp.up_proj.weight"].dtype == torch.float32, "what subblocks are built from"
    ids = random_ids(parent)
    exact, rounded = logits(parent.model, ids), logits(stored.model, ids)
    assert 0 < (rounded - exact).abs().max() < 0.2 * exact.std()


def test_the_parents_own_score_is_nothing() -> None:
    parent = in_bfloat16()
    ids = random_ids(parent, sequences=3, tokens=14)
    whole = evaluate(parent.model, parent.model, ids)
    assert (whole.kl, whole.top1_agreement) == (0.0, 1.0)
    again = multiply_in("bfloat16", assemble(parent, parent.architecture, dict[Choice, Weights]().__getitem__))
    assert torch.equal(logits(again, ids), logits(parent.model, ids))
    assert evaluate(parent.model, again, ids) == whole
    own = {choice: parent_part(parent, choice.layer, choice.role) for choice in parent.architecture.choices()}
    # A product of several sequences may end in other bits, which bfloat16 then rounds otherwise.
    for fidelity in scores(parent, own, ids).values():
        assert fidelity.kl == pytest.approx(0, abs=1e-4)


def test_scores_are_near_those_in_float32_and_differ() -> None:
    exact = random_parent()
    ids = random_ids(exact, sequences=8, tokens=16)
    architecture = architecture_with(exact, "kv")
    options = [*architecture.choices(), *(of_kind("linear", layer) for layer in range(6))]
    options += [of_kind("ffn", layer) for layer in range(6)]
    weights: dict[Choice, Weights] = {}
    for option in options:
        if not exact.own(option):
            weights |= first_weights_of(exact, exact.architecture.with_(option))
    one, other = scores(exact, weights, ids), scores(replace(exact, products="bfloat16"), weights, ids)
    assert all(one[each].kl != other[each].kl for each in weights)
    correlation = spearman([one[each].kl for each in weights], [other[each].kl for each in weights])
    assert correlation is not None
    assert correlation > 0.9


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_kind_is_built_and_trained(name: str) -> None:
    parent, exact = in_bfloat16(), random_parent()
    choice = of_kind(name, 2)
    built, in_float32 = (distilled(each, [choice], 256)[choice] for each in (parent, exact))
    assert {tensor.dtype for tensor in built.weights.values()} == {torch.float32}
    assert built.loss_trained != in_float32.loss_trained
    assert built.loss_trained == pytest.approx(in_float32.loss_trained, rel=0.3)


def test_nan_is_an_error_with_a_place() -> None:
    parent = in_bfloat16()
    ids, choice = random_ids(parent, 16, 16), of_kind("ffn", 1)
    with pytest.raises(NotFiniteError, match=r"L1\.ffn=ffn24: the distillation loss is (nan|inf) after \d+ tokens"):
        list(distil(parent, {choice: Training(2048, 1e30)}, texts_of(parent, ids, ids, ids[:4], batch=8)))
    damaged = first_weights_of(parent, parent.architecture.with_(choice))[choice]
    damaged = damaged | {"mlp.up_proj.weight": torch.full_like(damaged["mlp.up_proj.weight"], torch.nan)}
    with pytest.raises(NotFiniteError, match=r"^L1\.ffn=ffn24: "):
        scores(parent, {choice: damaged}, ids)


def test_healing_that_was_stopped_ends_where_it_would_have(tmp_path: Path) -> None:
    parent = in_bfloat16()
    ids, children = random_ids(parent, sequences=16), []
    for name in ("stopped", "whole"):
        child = multiplying(parent, CHILD)
        healing = heal(parent.model, child, ids, SHORT, tmp_path / name, HealingRun(name == "whole"))
        if name == "stopped":
            for _, _ in zip(range(5), healing, strict=False):
                pass
            child = multiplying(parent, CHILD)
            healing = heal(parent.model, child, ids, SHORT, tmp_path / name)
        list(healing)
        children.append(child)
    exact = deepcopy(child_of(random_parent(), CHILD))
    list(heal(random_parent().model, exact, ids, SHORT, tmp_path / "exact"))
    stopped, whole = (child.state_dict() for child in children)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in stopped.items())
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in exact.state_dict().items())


def test_a_copy_multiplies_as_the_model_does_and_leaves_nothing_behind() -> None:
    parent = in_bfloat16()
    child, ids = multiplying(parent, CHILD), random_ids(parent)
    copied = deepcopy(child)
    assert products_of(copied) == "bfloat16"
    expected = logits(child, ids)
    child.model.layers[0].mlp.up_proj.weight.data.zero_()
    assert torch.equal(logits(copied, ids), expected)
    assert not torch.equal(logits(child, ids), expected)
    with pytest.raises(RuntimeError):
        copied.lm_head(torch.zeros(1, 3))  # of a wrong size
    assert not torch.is_autocast_enabled("cpu")


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(SettingError, match=r"compute\.precision: cpu here has no tf32"):
        _ = replace(random_parent(), products="tf32").model
    with pytest.raises(JobError, match=r"compute\.precision: tf32 is a type of NVIDIA's GPUs.*CPUs"):
        config.parse(f"{JOB}compute: {{precision: tf32}}\n", "job.yaml")
    config.parse(f"{JOB}compute: {{precision: tf32}}\nscenario: {{device: cuda}}\n", "job.yaml")
    before = torch.get_float32_matmul_precision()
    with gradients_of("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("chosen", ["precision: [q8_0]", "kv_cache: [q8_0]"])
def test_what_is_finer_than_bfloat16_is_not_chosen_by_it(chosen: str) -> None:
    text = f"{JOB}space: {{{chosen}}}\nexport: {{format: gguf}}\ncompute: {{precision: bfloat16}}\n"
    with pytest.raises(JobError, match=r"compute\.precision: .*space\.(precision|kv_cache) chooses between"):
        config.parse(text, "job.yaml")


@pytest.mark.slow
def test_keys_are_those_of_before_and_others_in_bfloat16(tmp_path: Path) -> None:
    exact = prepare(config.parse(f"{JOB}home: {tmp_path}\n", "job.yaml"))
    rounded = prepare(config.parse(f"{JOB}home: {tmp_path}\ncompute: {{precision: bfloat16}}\n", "job.yaml"))
    skipped = Choice.parse("L0.attention=skip")
    before = digest(1, exact.parent.digest, str(skipped), [], exact.tokens.digest("score"))
    assert exact.measured_score_key(skipped) == before != rounded.measured_score_key(skipped)
    assert exact.parent.digest == rounded.parent.digest
    assert exact.id != rounded.id
    for part in exact.to_build:
        assert exact.build_key(part) != rounded.build_key(part)
    for geometry in exact.to_measure:
        assert exact.cost_key(geometry) == rounded.cost_key(geometry)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_both_types_side_by_side_in_one_home(here: Here, copy: Path, tmp_path: Path) -> None:
    home = copy / "home"
    exact = {row["key"]: row for row in rows(home, "score")}
    parts = {row["key"] for row in rows(home, "distillation")}
    rounded = job(tmp_path, name="rounded", compute={"precision": "bfloat16"})
    done = here(home, "search", rounded)
    assert done.returncode == 0, done.stderr
    one = {row["choice"]: row["kl"] for row in exact.values()}
    other = {row["choice"]: row["kl"] for row in rows(home, "score") if row["key"] not in exact}
    assert one.keys() == other.keys()
    assert all(one[choice] != other[choice] for choice in one)
    correlation = spearman([*one.values()], [other[choice] for choice in one])
    assert correlation is not None
    assert correlation > 0.9
    assert len(rows(home, "distillation")) == 2 * len(parts)
    assert len(rows(home, "search")) == len({row["child_key"] for row in rows(home, "trial")}) == 2
    before, written, stages = outcome(home), files(home), len(rows(home, "stage"))
    assert here(home, "search", rounded).returncode == 0
    assert (outcome(home), files(home)) == (before, written)
    assert not any(row["work_done"] for row in rows(home, "stage")[stages:])
