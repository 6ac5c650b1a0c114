"""A built trial as models that could be served: its export for an engine, and its parent in the same form.

A missing file is exported once, into the search's home, and found there the next time.
"""

from pathlib import Path

from gguf import LlamaFileType
from huggingface_hub import ModelCardData
from rich.console import Console

from blocklib.block import Architecture
from blocklib.gguf_header import is_gguf
from blocklib.parent import load_parent
from cost_models.scenario import USUAL_DTYPE
from db import models
from db.store import Store
from nas.errors import MissingFileError
from nas.export.formats import Target, exporter
from nas.export.parent_settings import settings_of
from nas.export.published import published_name
from nas.files.home import child_file, home_of
from nas.job.request import checkpoint_of
from nas.job.stored import kv_cache_of, request_of, scenario_in
from nas.serving.artefact import Artefact, artefact_at
from nas.stages.export import export_trial
from nas.terminal.printable import printable
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder
from nas.text.tokenizer import load_tokenizer

_FOLDERS = ("hf", "plain", "decilm")
_RUN_IN = {"llama_cpp": ("gguf",), "torch_compile": ("hf", "plain")}
"""The formats of exports that an engine runs, where these are not all folders."""


def child_of(store: Store, trial: models.TrialRow, engine: str, console: Console) -> Artefact:
    """The child's GGUF file for `llama_cpp`, to be served with the keys and values that it was searched for; else its
    folder for transformers or vLLM.

    Raises MissingFileError where the trial is not built, and what the export raises.
    """
    search = store.find_search(trial.search_id)
    home, name = home_of(store, search), f"trial {trial.id}"
    if not child_file(home, trial.child_key).is_file():
        raise MissingFileError(f"trial {trial.id} is not built: nas build {trial.id}")
    kv_cache = kv_cache_of(search, trial) if engine == "llama_cpp" else None
    own = Path(trial.child_path) if trial.child_path else None
    target = _target(search, trial, engine)
    if own is not None and own.is_dir() and export_format(trial) in _RUN_IN.get(engine, _FOLDERS):
        return Artefact(name, artefact_at(own).path, is_ours=True, kv_cache=kv_cache)
    out = home / "exports" / trial.key / str(target)
    if not out.is_dir():
        with bar(console, f"export trial {trial.id} as {target}", at_once=True):
            export_trial(store, trial.id, target, out)
    return Artefact(name, artefact_at(out).path, is_ours=True, kv_cache=kv_cache)


def export_format(trial: models.TrialRow) -> str:
    """The format of a trial's export, without the precision of a GGUF file; empty where it has none."""
    return (trial.export_format or "").split("-")[0]


def parent_of(store: Store, trial: models.TrialRow, child: Artefact, console: Console) -> Artefact:
    """The parent in the form of the child: its own folder or GGUF file, else a GGUF file made of it as the child's was,
    or, beside a child of mixed types, in the type that the search refers to; with the keys and values of the search's
    scenario.

    Raises what the export raises.
    """
    search = store.find_search(trial.search_id)
    checkpoint, home = checkpoint_of(search.parent), home_of(store, search)
    code = request_of(search).allows_remote_code
    folder = parent_folder(checkpoint, home, code=code)
    if not child.is_gguf:
        return Artefact("parent", folder)
    kv_cache = scenario_in(search).kv_cache
    if is_gguf(checkpoint):
        return Artefact("parent", Path(checkpoint), kv_cache=kv_cache)
    precision = _precision(search) if _is_mixed(trial) else _stored_as(child)
    out = home / "exports" / f"parent-{search.parent_digest}" / f"gguf-{precision}"
    if not out.is_dir():
        with bar(console, f"export the parent as GGUF, {precision}", at_once=True):
            tokenizer = load_tokenizer(folder, code)
            write = exporter(Target("gguf", precision))
            write(load_parent(str(folder)).stored_model(), tokenizer, out, _card(search), settings_of(str(folder)))
    return Artefact("parent", artefact_at(out).path, kv_cache=kv_cache)


def _target(search: models.SearchRow, trial: models.TrialRow, engine: str) -> Target:
    """The form in which a missing export is written for an engine. A child that was searched for vLLM is written as
    decilm there, since the search took its times on that form; one of mixed types has those, and no other."""
    if engine == "llama_cpp":
        return Target("gguf", None if _is_mixed(trial) else _precision(search))
    return Target("decilm" if engine == "vllm" == scenario_in(search).engine else "hf")


def _is_mixed(trial: models.TrialRow) -> bool:
    """Whether the search chose the types of the child's parts."""
    architecture = Architecture.parse(trial.architecture)
    return architecture != architecture.unrounded


def _precision(search: models.SearchRow) -> str:
    """The precision in which llama.cpp serves the search's children."""
    scenario = scenario_in(search)
    return scenario.dtype if scenario.engine == "llama_cpp" else USUAL_DTYPE["llama_cpp"]


def _card(search: models.SearchRow) -> str:
    known = ModelCardData(base_model=published_name(search.parent), tags=["puzzle-nas"])
    return f"---\n{known.to_yaml()}\n---\n# The parent of {printable(search.name)}\n"


def _stored_as(child: Artefact) -> str:
    """The precision that a GGUF file of ours was written in."""
    name = LlamaFileType(int(child.header.keys["general.file_type"])).name.lower()
    return name.removeprefix("mostly_").removeprefix("all_").removesuffix("_s")
