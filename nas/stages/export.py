"""Export a built trial as a directory that an inference engine loads. It needs only the child's file and the search's
row."""

from pathlib import Path

from huggingface_hub import ModelCardData

from blocklib.block import Architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import child_config, model_with, own_shape
from cost_models.engines.torch_eager import torch_dtype
from db import models
from db.store import Store
from nas.export.exported import Exported
from nas.export.formats import Target, exporter
from nas.export.parent_settings import settings_of
from nas.export.published import published_name
from nas.files.home import child_file, home_of
from nas.job.request import checkpoint_of
from nas.job.stored import request_of, scenario_in
from nas.stages.child_file import load_child
from nas.terminal.printable import printable
from nas.text.parent_folder import parent_folder
from nas.text.tokenizer import load_tokenizer
from nas.view.table import comparison, markdown


def export_trial(store: Store, trial_id: int, format: str, out: Path, precision: str | None = None) -> Exported:
    """`precision` of a GGUF file; None: its default.

    Raises FileNotFoundError where the trial was never built, FileExistsError where `out` is taken, and what the
    format's exporter raises."""
    trial = store.trial(trial_id)
    search = store.find_search(trial.search_id)
    return deliver(home_of(store, search), search, trial, Target(format, precision), out)


def deliver(home: Path, search: models.SearchRow, trial: models.TrialRow, target: Target, out: Path) -> Exported:
    """Export the child in that home, in the dtype it is to be served in, with the parent's tokenizer and generation
    settings, and a card that holds the comparison."""
    scenario, child = scenario_in(search), as_assembled(load_child(child_file(home, trial.child_key)))
    if target.format != "gguf":  # A GGUF file is rounded once, from the weights as they are.
        child.to(dtype=torch_dtype(scenario))  # type: ignore[call-arg]
    elif target.precision is None and scenario.engine == "llama_cpp":
        target = Target("gguf", scenario.dtype)
    allowed = request_of(search).allows_remote_code
    folder = parent_folder(checkpoint_of(search.parent), home, weights=False, code=allowed)
    tokenizer = load_tokenizer(folder, allowed)
    return exporter(target)(child, tokenizer, out, _card(search, trial), settings_of(str(folder)))


def as_assembled(child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    """The child's weights under the configuration that it was assembled with. Later changes of the configuration are
    dropped."""
    config = child.config
    return model_with(
        child_config(config, Architecture.parse(config.architecture), own_shape(config)), child.state_dict()
    )


def _card(search: models.SearchRow, trial: models.TrialRow) -> str:
    known = ModelCardData(base_model=published_name(search.parent), library_name="transformers", tags=["puzzle-nas"])
    return f"---\n{known.to_yaml()}\n---\n# {printable(search.name)}\n\n{markdown(comparison(search, trial))}\n"
