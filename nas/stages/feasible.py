"""Whether this machine can run a job on its parent. This takes arithmetic on sizes, and one pass over the weights if
their type is wider than the scenario's. It loads no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blocklib.block import Choice, Subblock
from blocklib.checkpoint import Checkpoint
from blocklib.families import positions_of
from blocklib.kinds import choice_parameters, kind_of, parent_architecture
from blocklib.loading import check_range, readable
from blocklib.parent import child_config
from blocklib.products import check_products
from blocklib.shape import Shape
from cost_models.analytic import architecture_cost, fixed_cost
from cost_models.engines.engines import engine_of
from cost_models.engines.torch_eager import torch_dtype
from cost_models.errors import ScenarioError
from cost_models.hardware import machine, total_bytes, usable_cores
from nas.errors import JobError
from nas.export.formats import check_format
from nas.export.verify_gguf import check_llama_cpp
from nas.job.context_length import check_positions
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.job.space import check_kinds, choices
from nas.job.units import format_quantity
from nas.stages.check_plan import check_plan
from nas.text.tokenizer import load_tokenizer

# 1 PiB: no node of a cluster has as much memory.
_NOWHERE = 1 << 50
_TRAINED = 4
"""Bytes of a number in float32, the type in which everything is kept and trained."""


def check_parent(request: Request, checkpoint: Checkpoint, is_here: bool) -> None:
    """Raise JobError or CheckpointError if the checkpoint cannot be the parent of this search, or this machine cannot
    run it.

    `is_here`: the work is done on this machine. Reads weights only for a scenario in a narrower type than theirs.
    """
    found = readable(checkpoint)
    check_sizes(request, found.shape, found.config)
    if is_here and request.measure.table is None:
        _check_device(request)
        engine_of(request.engine).check_installed()
    if is_here:
        _check_trainer(request)
        if request.export_format == "gguf":
            check_llama_cpp()
    _check_memory(request, found.shape, is_here)
    if is_here:
        check_plan(request, found)
    load_tokenizer(checkpoint.folder, request.allow_remote_code)
    check_range(checkpoint, torch_dtype(scenario_of(request)))


def check_sizes(request: Request, shape: Shape, config: Any) -> None:
    """Raise JobError, SubblockError or UnsupportedExportError where the parent cannot hold an option, has too few
    positions, or a format cannot carry one.

    `config` is the parent's, as transformers has it or as ours.
    """
    check_kinds(request.distill.kinds)
    own = child_config(config, parent_architecture(shape), shape)
    format = request.export_format
    found, scenario = choices(request.space, shape, format=format), scenario_of(request)
    check_format(format, found, own)
    _check_parts(request, found)
    for cache in request.space.kv_cache or ("",):
        engine_of(scenario.engine).check(found, own, scenario.keeping(cache))
    check_positions(request, positions_of(config))


def _check_parts(request: Request, found: Sequence[Choice]) -> None:
    heal = request.heal
    if heal is None or heal.parts == 1:
        return
    whole = [
        part.what
        for choice in found
        for part in choice.parts
        if isinstance(part.what, Subblock) and kind_of(part.role, part.what).needs_whole_batches
    ]
    if whole:
        key = "heal.workers" if heal.workers > 1 else "heal.accumulate"
        raise JobError(f"{key}: {whole[0]} is trained on whole batches; give 1, or leave it out of space.ffn")


def _check_device(request: Request) -> None:
    asked = request.scenario
    try:
        machine(scenario_of(request))
    except ScenarioError as error:
        raise JobError(f"scenario.device: {error}") from error
    if asked.device == "cpu" and asked.threads is not None and asked.threads > usable_cores():
        raise JobError(
            f"scenario.threads: {asked.threads:,} threads, but this process may use {usable_cores()} cores; give at "
            "most that number"
        )


def _check_trainer(request: Request) -> None:
    if request.gpus_per_task and not torch.cuda.is_available():
        asks = f"{request.gpus_per_task:g} a task, and torch {torch.__version__} finds no cuda here"
        raise JobError(f"ray.gpus_per_task: {asks}; give 0, or the ray.address of a cluster with GPUs")
    if request.gpus_per_task:
        check_products(request.compute.precision, torch.device("cuda"))


@dataclass(frozen=True)
class _Need:
    """A lower bound on memory in bytes: the key that asks for it, its content and its place."""

    key: str
    held_bytes: int
    what: str
    device: str = "cpu"


def _check_memory(request: Request, shape: Shape, is_here: bool) -> None:
    for need in _needs(request, shape):
        there_bytes = total_bytes(torch.device(need.device)) if is_here else _NOWHERE
        if need.held_bytes > there_bytes:
            where = f"this machine's {need.device}" if is_here else "no node"
            taken = f"takes at least {_said(need.held_bytes)} ({need.what})"
            raise JobError(f"{need.key}: {taken}, and {where} has {_said(there_bytes)}; ask for less")


def _needs(request: Request, shape: Shape) -> Iterator[_Need]:
    """The memory that a search holds at one time, each item a lower bound."""
    data, parent = request.data, parent_architecture(shape)
    if request.scenario.flash is None and request.measure.table is None:
        scenario = scenario_of(request)
        cost = architecture_cost(parent, shape, scenario)
        passed = scenario.batch * scenario.prompt_tokens * (shape.hidden + shape.ffn_width) * scenario.bytes_per_value
        held = cost.weight_bytes + cost.cache_bytes + passed
        what = f"the parent's weights, {_said(cost.cache_bytes)} of cache, and one layer's activations of a prefill"
        if engine_of(scenario.engine).holds_both:
            held += fixed_cost(shape, scenario).weight_bytes
            what += f", and at least a child's embeddings, which {scenario.engine} holds beside the parent"
        yield _Need("scenario", held, what, scenario.device)
    found = choices(request.space, shape, format=request.export_format)
    largest = max(found, key=lambda choice: choice_parameters(choice, shape))
    yield _Need(f"space: {largest}", choice_parameters(largest, shape) * _TRAINED, "its weights in float32")
    sequences, trainer = data.distillation_tokens // data.sequence_length, "cuda" if request.gpus_per_task else "cpu"
    batches = {"distill.batch": request.distill.batch, "heal.batch": request.heal.batch if request.heal else 0}
    size = 2 if request.compute.precision == "bfloat16" else _TRAINED
    for key, batch in batches.items():
        passed = min(batch, sequences) * data.sequence_length * (shape.hidden + shape.ffn_width) * size
        yield _Need(key, passed, f"one layer's activations, in {request.compute.precision}", trainer)
    yield _Need("data.score_tokens", data.score_tokens * shape.hidden * _TRAINED, "the parent's hidden states")


def _said(count: int) -> str:
    return format_quantity("memory", float(count))
