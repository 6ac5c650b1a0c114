"""A parent that was really trained, and text it can read. Random weights show less than trained ones."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor
from transformers import AutoTokenizer

from blocklib.parent import Parent, load_parent
from nas.text.standard_library import stdlib_files

# The models here are so small that a second thread would mostly wait for the first.
torch.set_num_threads(1)
# A busy machine is no failing test.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# Fixtures that several files share, and that are made once for all of them.
pytest_plugins = ("searches",)

LONGEST = ("submission", "search", "compare", "adding", "readme", "solver_limits", "every_kind", "exits", "cli", "api")
"""Files that take longest, longest first: workers that begin with them end together."""

EMBEDDED = Path(__file__).parents[1] / "nas/embedded/parent"
NAMED_PARENT = Path(os.environ.get("PUZZLE_NAS_PARENT") or EMBEDDED)
"""The parent whose exports are taken to other tools: a folder of the family Llama that the environment may name."""
SHARED = Path(__file__).parents[1] / "../shared"
STORIES = SHARED / "parents/stories260K"

_SEQUENCES, _TOKENS = 160, 64


@pytest.fixture(scope="session")
def trained_parent() -> Parent:
    """The parent that ships with the package; without it, one that lies beside the repository."""
    for folder in (EMBEDDED, STORIES):
        if (folder / "model.safetensors").is_file():
            return load_parent(str(folder))
    pytest.skip("no trained parent: neither nas/embedded/parent nor stories260K is there")


@pytest.fixture(scope="session")
def text_ids(trained_parent: Parent) -> Tensor:
    """Real text in the trained parent's tokens, [160, 64]: Python for the embedded parent, stories for the other."""
    tokenizer = AutoTokenizer.from_pretrained(trained_parent.source)
    if Path(trained_parent.source) == EMBEDDED:
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in stdlib_files("heldout")[:40]]
    else:
        texts = (SHARED / "text/tinystories/heldout.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:400]
    ids: list[int] = []
    for encoded in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [tokenizer.bos_token_id, *encoded]
    assert len(ids) >= _SEQUENCES * _TOKENS, f"{len(ids)} tokens are too few"
    return torch.tensor(ids[: _SEQUENCES * _TOKENS]).view(_SEQUENCES, _TOKENS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
