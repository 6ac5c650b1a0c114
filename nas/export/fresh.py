"""Load an exported folder as a stranger would, and say what it computes. Run as a script in a process of its own.

`python -I fresh.py FOLDER QUESTION ANSWER`: QUESTION and ANSWER are torch files. This project cannot be imported here,
even where it is installed, so only what lies in the folder can make the model run. Judges nothing: `nas/export/hf.py`
does.
"""

import sys

_PROJECT = ("nas", "blocklib", "cost_models", "solvers", "db")
_NEW_TOKENS = 8


def answer(folder: str, question: dict[str, "object"]) -> dict[str, "object"]:
    """Missing and unexpected keys, logits, the tokens of a text, and greedy continuations made in several ways."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids_BT, text = question["ids"], question["text"]
    assert isinstance(ids_BT, torch.Tensor)
    torch.set_num_threads(int(str(question["threads"])))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    with torch.no_grad():
        logits = model(ids_BT, use_cache=False).logits
    return {
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
        "logits": logits,
        "tokens": AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(text)["input_ids"],
        **_continuations(model, ids_BT),
    }


def _continuations(model: "object", ids_BT: "object") -> dict[str, "object"]:
    raise NotImplementedError
