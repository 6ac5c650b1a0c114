"""Export a built trial as a directory that an inference engine loads. It needs only the child's file and the search's
row."""

from dataclasses import dataclass
from pathlib import Path

import torch

from blocklib.block import Architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import child_config, in_type, model_with, own_shape
from cost_models.engines.llama_server import cache_flags
from cost_models.engines.torch_eager import torch_dtype
from db import models
from db.store import Store
from nas.cluster.tasks import Report
from nas.errors import UnsupportedExportError
from nas.export.exported import Exported
from nas.export.formats import Target, exporter
from nas.export.gguf import DEFAULT_PRECISION, export_rounded_gguf
from nas.export.parent_settings import settings_of
from nas.export.published import card_data
from nas.export.rounded import RoundedMatrices, rounded_once
from nas.files.home import child_file, home_of
from nas.job.request import checkpoint_of
from nas.job.stored import kv_cache_of, request_of, scenario_in
from nas.solve.plain_price import PlainPrice, with_real_kls
from nas.stages.child_file import load_child, stored_in_child
from nas.terminal.printable import printable
from nas.text.parent_folder import parent_folder
from nas.text.tokenizer import load_tokenizer
from nas.view.table import comparison, markdown

DTYPES = ("float32", "bfloat16", "float16")
"""The types that the weights of an `hf` or `decilm` export can have."""


def export_trial(store: Store, trial_id: int, target: Target, out: Path) -> Exported:
    """Raises FileNotFoundError where the trial was never built, FileExistsError where `out` is taken, and what
    `deliver` raises."""
    trial = with_real_kls(store, store.trial(trial_id))
    search = store.find_search(trial.search_id)
    return deliver(Delivery(home_of(store, search), search, trial, target, out))


@dataclass(frozen=True)
class Delivery:
    """A child to export: the home it is in, the rows of its search and its trial, the form, and the folder to write.
    Where the target names no type of weights, it is the one to be served in, as the search's scenario says."""

    home: Path
    search: models.SearchRow
    trial: models.TrialRow
    target: Target
    out: Path


def delivered(task: Delivery, report: Report) -> Exported:
    """`deliver`, on a worker."""
    report(doing="writing the files and loading them again")
    return deliver(task)


def deliver(asked: Delivery) -> Exported:
    """Export the child with the parent's tokenizer and generation settings, and a card that holds the comparison.

    Raises UnsupportedExportError for an unknown dtype, and what the format's exporter raises.
    """
    home, search, trial, target = asked.home, asked.search, asked.trial, asked.target
    file = child_file(home, trial.child_key)
    if target.dtype not in (None, *DTYPES):
        raise UnsupportedExportError(f"dtype {target.dtype!r}: a child is written in {', '.join(DTYPES)}")
    scenario, child, stored = scenario_in(search), load_child(file), stored_in_child(file)
    if stored and target.precision not in (None, scenario.dtype if target.format == "gguf" else None):
        raise UnsupportedExportError(
            f"precision {target.precision}: the search chose the precision of each part of trial {trial.id}; leave out "
            "precision"
        )
    write = exporter(target)
    if target.format in ("decilm", "plain"):  # Matrices are rounded once, from the weights as they are.
        write = exporter(target, rounded_once(child, RoundedMatrices(target.precision or "", stored)))
    if target.format != "gguf":
        child = as_assembled(child, getattr(torch, target.dtype) if target.dtype else torch_dtype(scenario))
    elif target.precision is None and scenario.engine == "llama_cpp":
        target = Target("gguf", scenario.dtype)
    allowed = request_of(search).allows_remote_code
    folder = parent_folder(checkpoint_of(search.parent), home, weights=False, code=allowed)
    tokenizer = load_tokenizer(folder, allowed)
    card, settings = _card(search, trial, folder), settings_of(str(folder))
    if target.format != "gguf":
        return write(child, tokenizer, asked.out, card, settings)
    card += _cache_note(kv_cache_of(search, trial))
    matrices = RoundedMatrices(target.precision or DEFAULT_PRECISION, stored)
    return export_rounded_gguf(child, tokenizer, asked.out, card, settings, matrices)


def as_assembled(child: PuzzleNasForCausalLM, dtype: torch.dtype) -> PuzzleNasForCausalLM:
    """The child's weights in one type, under the configuration that it was assembled with. Later changes of the
    configuration are dropped."""
    config = child.config
    own = child_config(config, Architecture.parse(config.architecture), own_shape(config))
    return model_with(own, in_type(child, dtype).state_dict())


def _card(search: models.SearchRow, trial: models.TrialRow, folder: Path) -> str:
    known, price = card_data(search.parent, folder), PlainPrice.of(trial)
    told = "" if price is None else f"\nIn numbers, {price.said(trial.metric)}.\n"
    return f"---\n{known.to_yaml()}\n---\n# {printable(search.name)}\n\n{markdown(comparison(search, trial))}\n{told}"


def _cache_note(kv_cache: str | None) -> str:
    """How llama.cpp is told the type of keys and values that the child was searched for."""
    if kv_cache is None:
        return ""
    flags = " ".join(cache_flags(kv_cache))
    return f"\nIt was searched for keys and values in {kv_cache}: give `llama-server` also `{flags}`.\n"
