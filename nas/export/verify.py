"""Whether a reloaded export is the child: the same logits on the same tokens, the same tokens for the same text.

This file compares everything in float32 on the CPU, where rounding stays far below the tolerance, whatever type and
device the child has.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blocklib import compute_dtype
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import computing, model_with
from nas.errors import ExportMismatchError

TOLERANCE = 1e-4
"""Largest absolute difference of two logits that counts as rounding."""

ONE_TOKEN_A_STEP = ("greedy_search", "sample", "beam_search", "beam_sample")
"""The generation modes of transformers that read one token per step. The others guess several tokens and check them at
once."""

SAMPLE_TEXT = "Once upon a time, there were 1,234 naïve puzzles:\n    def f(x): return x"


def probe_ids(vocabulary: int) -> Tensor:
    """Token ids [2, 16] to compare on, the same for every run."""
    return torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(child: PuzzleNasForCausalLM, ids_BT: Tensor) -> Tensor:
    """The child's logits [B, T, vocabulary] in float32 on the CPU. The child itself stays as it is."""
    here = model_with(child.config, {name: tensor.cpu() for name, tensor in child.state_dict().items()})
    logits: Tensor = computing(here)(ids_BT, use_cache=False).logits
    return logits


def logit_difference(child_BTV: Tensor, reloaded_BTV: Tensor, target: str) -> float:
    """The largest absolute difference. Raises ExportMismatchError if it exceeds the tolerance, or is not a number."""
    difference = (child_BTV - reloaded_BTV).abs().max().item()
    if not difference <= TOLERANCE:
        raise ExportMismatchError(
            f"{target} gives logits up to {difference:.3g} away from the child's; at most {TOLERANCE} is allowed"
        )
    return difference


def same_tokens(tokenizer: PreTrainedTokenizerBase, reloaded: list[int], target: str) -> None:
    """Raise ExportMismatchError where `reloaded`, the tokens of SAMPLE_TEXT, are not the tokenizer's own."""
    own = tokenizer(SAMPLE_TEXT)["input_ids"]
    if own != reloaded:
        raise ExportMismatchError(
            f"{target} does not tokenise text as the child's tokenizer does: {reloaded[:8]}, not {own[:8]}"
        )


def compare_in_fresh_process(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    remote_code: bool = True,
    python: str = sys.executable,
) -> tuple[float, tuple[str, ...]]:
    """Reload the folder in a process that cannot import this package (`reload.py`), and compare it with the child.

    `python` is the interpreter of that process. `remote_code`: whether the model is code in the folder, which
    transformers runs only if it is told to. Returns the
    largest difference of logits, and notes on what a user will meet. Raises ExportMismatchError.
    """
    ids_BT = probe_ids(child.config.vocab_size)
    question = {
        "ids": ids_BT, "text": SAMPLE_TEXT, "threads": torch.get_num_threads(), "remote_code": remote_code,
        "compute_dtype": compute_dtype.__file__,
    }  # fmt: skip
    answer = _ask_fresh_process(python, folder, question)
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
    """Raise ExportMismatchError if a `generate` after `prompt` tokens read more than one token in a step.

    `used` is the answer of `reload.py`; its `seen` are the tokens per sequence that each forward read. A parent with
    its cache reads the prompt, in one piece or several, and then one token per step.
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


def _ask_fresh_process(python: str, folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="puzzle-nas-export-") as scratch:
        asked, answered = Path(scratch, "question.pt"), Path(scratch, "answer.pt")
        torch.save(question, asked)
        script = Path(__file__).with_name("reload.py")
        # transformers copies the folder's code to a cache under the folder's name. It must not find an old copy there.
        environment = os.environ | {"HF_MODULES_CACHE": str(Path(scratch, "modules")), "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [python, "-I", "-X", "utf8", str(script), str(folder.absolute()), str(asked), str(answered)],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,  # Nobody can answer a prompt here.
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if process.returncode != 0:
            why = process.stderr.strip() or f"it ended with status {process.returncode}, perhaps for want of memory"
            raise ExportMismatchError(f"the exported model does not load and run in a fresh process:\n{why}")
        loaded: dict[str, Any] = torch.load(answered)
        return loaded
