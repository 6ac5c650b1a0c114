"""The exports that transformers loads share this: the lines that load them, and the check by these lines. This file
knows no format.
"""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.model import PuzzleNasForCausalLM
from nas.export.exported import Card
from nas.export.least_version import LEAST_TRANSFORMERS
from nas.export.verify import compare_in_fresh_process

_FLAG = ", trust_remote_code=True"


def loading_lines(model_has_code: bool, tokenizer_has_code: bool) -> str:
    """A card's lines of Python, in Markdown."""
    return f"""
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder{_FLAG if model_has_code else ""})
tokenizer = AutoTokenizer.from_pretrained(folder{_FLAG if tokenizer_has_code else ""})
```
"""


LOADING_OWN_CODE = (
    f"\nIn transformers, version {LEAST_TRANSFORMERS} or newer, and so in lm_eval and PEFT:\n"
    + loading_lines(model_has_code=True, tokenizer_has_code=True)
)
"""A card's section on loading a folder that carries the code of its model."""


def described(
    folder: Path, child: PuzzleNasForCausalLM, tokenizer: PreTrainedTokenizerBase, card: Card, remote_code: bool = True
) -> tuple[float, tuple[str, ...]]:
    """Write the card, reload the folder in a fresh process by its lines, and compare it with the child.

    `remote_code`: whether the model is code in the folder. Returns the largest difference of logits, and all notes, to
    which the comparison may add. Raises ExportMismatchError.
    """
    card.write(folder)
    difference, told = compare_in_fresh_process(child, tokenizer, folder, remote_code)
    whole = replace(card, notes=card.notes + told)
    whole.write(folder)
    return difference, whole.notes
