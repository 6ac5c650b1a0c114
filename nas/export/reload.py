"""Load an exported folder without this package, and report its outputs. This runs as a script in its own process.

`python -I reload.py FOLDER QUESTION ANSWER`; the last two are torch files. This project cannot be imported here, even
if it is installed, so the model runs from the folder alone; only the file that has it compute in float32 on the weights
as they are stored is run by its path. This file only reports; `nas/export/verify.py` decides whether the answers are
right.
"""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

_THIS_PROJECT = ("nas", "blocklib", "cost_models", "solvers", "db")
_NEW_TOKENS = 8
_LOADING = re.compile(r"^## Loading$.*?^```python$(.*?)^```$", re.MULTILINE | re.DOTALL)
_PADDING = 3


def answer(folder: str, question: dict[str, Any]) -> dict[str, Any]:
    """Keys missing and unexpected, what class AutoModel makes and which it should, logits, the tokens of a text,
    greedy continuations made in several ways, and what `generate` reads, loaded and called as the card says.
    """
    torch.set_num_threads(question["threads"])
    loaded_by_card = as_the_card_says(folder)
    model, tokens = loaded_by_card["model"], loaded_by_card["tokenizer"](question["text"])["input_ids"]
    is_quantized = getattr(model, "is_quantized", False)  # transformers computes such a model in a type of its own.
    compute_in = runpy.run_path(question["compute_dtype"])["compute_in"]
    if not is_quantized:
        # A CPU may not support the type that the GPU serves in.
        compute_in(torch.float32, model, model.device)
    as_called = work_of(model, question["ids"][:1])
    # Use the cache, whatever the settings say.
    model.generation_config = GenerationConfig(use_cache=model.generation_config.use_cache, pad_token_id=0)
    plainly = work_of(model, question["ids"])
    del model, loaded_by_card  # One at a time.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=question["remote_code"],
        dtype=torch.float32 if is_quantized else "auto",
        output_loading_info=True,
    )
    model, info = loaded
    if not is_quantized:
        compute_in(torch.float32, model, model.device)
    model.generation_config = GenerationConfig()  # Greedy, to the last token.
    with torch.device("meta"):
        base: Any = AutoModel.from_config(model.config, trust_remote_code=question["remote_code"])
    with torch.no_grad():
        logits = model(question["ids"], use_cache=False, return_dict=True).logits
    return {
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
        "base_classes": [type(base).__name__, type(model.base_model).__name__],
        "logits": logits,
        "tokens": tokens,
        "as_called": as_called,
        "plainly": plainly,
        "continuations": continuations(model, question["ids"]),
    }


def as_the_card_says(folder: str) -> dict[str, Any]:
    """The names that the code in README.md defines when it is run unchanged."""
    *_, code = _LOADING.findall(Path(folder, "README.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"folder": folder}
    exec(code, names)
    return names


def work_of(model: Any, ids_BT: Tensor) -> dict[str, Any]:
    """The behaviour of `generate(ids, max_new_tokens=...)`: its `mode`, the tokens per sequence that each forward read,
    and the error that it raised for a setting it refuses."""
    seen: list[int] = []
    mode, refused = "", None
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    try:
        mode = str(model.generation_config.get_generation_mode().value)
        model.generate(ids_BT, max_new_tokens=_NEW_TOKENS)
    except Exception as error:
        refused = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    finally:
        hook.remove()
    return {"mode": mode, "seen": seen, "refused": refused}


def continuations(model: Any, ids_BT: Tensor) -> dict[str, list[list[int]]]:
    """New tokens by greedy search after each row. Padding replaces the last row's first tokens. `alone` is the last row
    without its padding and without the rest of the batch.
    """
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[-1, :_PADDING] = 0
    ways: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
        "uncached": (ids_BT, mask_BT, {"use_cache": False}),
        "cached": (ids_BT, mask_BT, {}),
        "static cache": (ids_BT, mask_BT, {"cache_implementation": "static"}),
        "alone": (ids_BT[-1:, _PADDING:], mask_BT[-1:, _PADDING:], {"use_cache": False}),
    }
    new: dict[str, list[list[int]]] = {}
    for way, (ids, mask, settings) in ways.items():
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=_NEW_TOKENS, pad_token_id=0, **settings)
        new[way] = generated[:, ids.shape[1] :].tolist()
    return new


def main() -> None:
    folder, question, answer_file = sys.argv[1:]
    for package in _THIS_PROJECT:
        # None makes every import of the package fail, wherever it is installed.
        sys.modules[package] = None  # type: ignore[assignment]
    torch.save(answer(folder, torch.load(Path(question))), Path(answer_file))


if __name__ == "__main__":
    main()
