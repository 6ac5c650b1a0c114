"""Export to Hugging Face transformers: a folder that `from_pretrained(folder, trust_remote_code=True)` loads anywhere.

The folder carries its own modelling code, copied from this package's sources, with only the kinds of subblock that the
child has. This format can carry every child. If this package is imported, the folder loads without the flag:
`blocklib/model.py` registers its classes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from blocklib.kinds import ATTENTION_MODULES, FFN_MODULES
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM, PuzzleNasModel
from nas.errors import ExportMismatchError
from nas.export.compare import SAMPLE_TEXT, logit_difference, logits_of, probe_ids, same_tokens
from nas.export.exported import Exported, files_in, whole_folder, write_card
from nas.export.settings import ParentSettings, check_settings
from nas.export.source import self_contained

_CONFIGURATION, _MODELING = "configuration_puzzle_nas", "modeling_puzzle_nas"
_AUTO_MAP = {
    "AutoConfig": f"{_CONFIGURATION}.PuzzleNasConfig",
    "AutoModel": f"{_MODELING}.PuzzleNasModel",
    "AutoModelForCausalLM": f"{_MODELING}.PuzzleNasForCausalLM",
}
ONE_TOKEN_A_STEP = ("greedy_search", "sample", "beam_search", "beam_sample")
"""The generation modes of transformers that read one token per step. The others guess several tokens and check them at
once."""
_LOADING = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
```
"""


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
    notes: tuple[str, ...] = ()
    if parent is not None:
        child.generation_config = deepcopy(parent.generation.settings)
    with whole_folder(out) as folder:
        child.save_pretrained(folder)
        _add_auto_map(folder / "config.json")
        tokenizer.save_pretrained(folder)
        write_code(child.config, folder)
        if parent is not None:
            notes += check_settings(folder, PuzzleNasConfig.from_pretrained(folder), parent, {})
        write_card(folder, card, _LOADING, ["custom_code"], notes)
        difference, told = _compare_in_fresh_process(child, tokenizer, folder)
        if told:
            notes += told
            write_card(folder, card, _LOADING, ["custom_code"], notes)
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
    (folder / f"{_CONFIGURATION}.py").write_text(f"{header}\n{configuration}", encoding="utf-8")
    (folder / f"{_MODELING}.py").write_text(f"{header}\n{modelling}", encoding="utf-8")


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
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"auto_map": _AUTO_MAP}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _compare_in_fresh_process(
    child: PuzzleNasForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[float, tuple[str, ...]]:
    """The largest difference of logits, and notes for the user."""
    ids_BT = probe_ids(child.config.vocab_size)
    answer = _ask_fresh_process(folder, {"ids": ids_BT, "text": SAMPLE_TEXT, "threads": torch.get_num_threads()})
    for fault in ("missing_keys", "unexpected_keys"):
        if answer[fault]:
            raise ExportMismatchError(
                f"the exported checkpoint has {fault.replace('_', ' ')}: {', '.join(answer[fault])}"
            )
    made, expected = answer["base_classes"]
    if made != expected:
        raise ExportMismatchError(f"AutoModel loads the exported folder as a {made}, not as a {expected}")
    difference = logit_difference(logits_of(child, ids_BT), answer["logits"], "the exported model, reloaded,")
    same_tokens(tokenizer, answer["tokens"], "the exported tokenizer, reloaded,")
    new = answer["continuations"]
    for way in ("cached", "static cache"):
        if new[way] != new["uncached"]:
            raise ExportMismatchError(f"greedy tokens {way} are {new[way]}, but {new['uncached']} without a cache")
    if new["uncached"][-1:] != new["alone"]:
        raise ExportMismatchError(
            f"greedy tokens after left padding are {new['uncached'][-1:]}, but {new['alone']} without"
        )
    if answer["plainly"]["refused"] is not None:
        raise ExportMismatchError(f"generate fails: {answer['plainly']['refused']}")
    for used in (answer["as_called"], answer["plainly"]):
        check_work(ids_BT.shape[1], used)
    refused = answer["as_called"]["refused"]
    if refused is None:
        return difference, ()
    return difference, (f"`generate(ids)` fails with the parent's generation settings: {refused}.",)


def check_work(prompt: int, used: Mapping[str, Any]) -> None:
    """Raise ExportMismatchError if a `generate` after `prompt` tokens read more than one token in a step. `used` is the
    answer of `fresh.py`; its `seen` are the tokens per sequence that each forward read. A parent with its cache reads
    the prompt, in one piece or several, and then one token per step.
    """
    if used["refused"] is not None or used["mode"] not in ONE_TOKEN_A_STEP:
        return
    seen, read = list(used["seen"]), 0
    while seen and read < prompt:
        read += seen.pop(0)
    if read != prompt or any(tokens != 1 for tokens in seen):
        ratio = sum(used["seen"]) / (prompt + len(seen))
        raise ExportMismatchError(
            f"generate reads {used['seen']} tokens in its forwards after a prompt of {prompt}, {ratio:.2g} times as "
            "many as a parent with a KV cache: the cache is not used"
        )


def _ask_fresh_process(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="puzzle-nas-export-") as scratch:
        asked, answered = Path(scratch, "question.pt"), Path(scratch, "answer.pt")
        torch.save(question, asked)
        script = Path(__file__).with_name("fresh.py")
        # transformers copies the folder's code to a cache under the folder's name. It must not find an old copy there.
        environment = os.environ | {"HF_MODULES_CACHE": str(Path(scratch, "modules")), "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [sys.executable, "-I", str(script), str(folder.absolute()), str(asked), str(answered)],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,  # Nobody can answer a prompt here.
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if process.returncode != 0:
            raise ExportMismatchError(f"the exported model does not load and run in a fresh process:\n{process.stderr}")
        loaded: dict[str, Any] = torch.load(answered)
        return loaded
