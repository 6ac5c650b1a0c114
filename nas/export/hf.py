"""Export to Hugging Face transformers: a folder that `from_pretrained(folder, trust_remote_code=True)` loads anywhere.

The folder carries its own modelling code, copied from this package's sources, with only the kinds of subblock that the
child has. This format can carry every child. If this package is imported, the folder loads without the flag:
`blocklib/model.py` registers its classes.
"""

import json
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from blocklib.kinds import ATTENTION_MODULES, FFN_MODULES
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM, PuzzleNasModel
from nas.export.carried_files import write_tokenizer
from nas.export.exported import Card, Exported, files_in, whole_folder
from nas.export.least_version import LEAST_TRANSFORMERS, checked
from nas.export.parent_settings import ParentSettings, check_settings
from nas.export.source import self_contained
from nas.export.transformers_folder import LOADING_OWN_CODE, described
from nas.export.vllm_flags import serving, vllm_limits

_CONFIGURATION, _MODELING = "configuration_puzzle_nas", "modeling_puzzle_nas"
_AUTO_MAP = {
    "AutoConfig": f"{_CONFIGURATION}.PuzzleNasConfig",
    "AutoModel": f"{_MODELING}.PuzzleNasModel",
    "AutoModelForCausalLM": f"{_MODELING}.PuzzleNasForCausalLM",
}
_TAGS = ("custom_code",)


def export_hf(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
) -> Exported:
    """Write the child to `out`, reload it in a fresh process that cannot import this package, and compare.

    Compared: no key missing or unexpected; logits to 1e-4 in float32; the tokenizer's tokens; greedy continuations
    with a dynamic cache, a static cache and none, left-padded and not, token for token; and, loaded by the card's own
    code, that `generate` reads one token a step. `card` is Markdown, with YAML front matter or without.

    The child generates with the settings of `parent`. Every field of the configurations that differs must be on the
    list of allowed differences. `notes` of the result say which of the parent's settings it could not keep.

    Raises FileExistsError where `out` is not empty, ExportMismatchError where the reloaded model is not the child.
    After an error nothing is left behind.
    """
    notes = vllm_limits(child.config)
    if parent is not None:
        child.generation_config = deepcopy(parent.generation.settings)
    with whole_folder(out) as folder:
        child.save_pretrained(folder)
        _add_auto_map(folder / "config.json")
        write_tokenizer(tokenizer, parent, folder)
        write_code(child.config, folder)
        if parent is not None:
            notes += check_settings(folder, PuzzleNasConfig.from_pretrained(folder), parent, {})
        told = Card(card, LOADING_OWN_CODE + serving(child.config), _TAGS, notes)
        difference, notes = described(folder, child, tokenizer, told)
    return Exported(out, "hf", difference, files_in(out), notes)


def write_code(config: PuzzleNasConfig, folder: Path) -> None:
    """Write the modelling and the configuration file of a child of this configuration."""
    header = (
        f"# Written by puzzle-nas {version('puzzle-nas')} from its own sources, for this model's kinds of subblock.\n"
        f"# Tested with transformers {transformers.__version__} and torch {torch.__version__}.\n"
        "# SPDX-License-Identifier: Apache-2.0\n"
    )
    configuration = self_contained([PuzzleNasConfig], tables={}, imported_from={})
    modelling = self_contained(
        [PuzzleNasModel, PuzzleNasForCausalLM], _modules_used(config), {"PuzzleNasConfig": f".{_CONFIGURATION}"}
    )
    (folder / f"{_CONFIGURATION}.py").write_text(checked(f"{header}\n{configuration}"), encoding="utf-8")
    (folder / f"{_MODELING}.py").write_text(checked(f"{header}\n{modelling}"), encoding="utf-8")


def _modules_used(config: PuzzleNasConfig) -> dict[str, dict[str, type[nn.Module]]]:
    """The tables in which the model looks up its subblocks, with only the kinds of this child's layers."""
    layers = list(config.per_layer_config)
    attentions = {layer.attention_kind for layer in layers if "attention" not in getattr(layer, "skip", [])}
    ffns = {layer.ffn_kind for layer in layers if "mlp" not in getattr(layer, "skip", [])}
    return {
        "ATTENTION_MODULES": {kind: module for kind, module in ATTENTION_MODULES.items() if kind in attentions},
        "FFN_MODULES": {kind: module for kind, module in FFN_MODULES.items() if kind in ffns},
    }


def _add_auto_map(config_file: Path) -> None:
    # transformers writes an auto_map only for classes whose own file it copies beside it.
    config = json.loads(config_file.read_text(encoding="utf-8")) | {
        "auto_map": _AUTO_MAP,
        "least_transformers": LEAST_TRANSFORMERS,
    }
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
