"""The name a parent is published under, for a model card: a hub refuses a path on somebody's machine.

Reads the folder's own card. Asks no hub.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from nas.job.request import EMBEDDED

_NAMES = ("model_id", "model_name", "base_model")
"""Where a card's front matter names the model itself, or else what it was made from, the nearest that is published."""


def published_name(parent: str) -> str | list[str] | None:
    """The hub's name of a search's parent: the id that was given, or the one that its card names; None if none.

    A list where its card names several models that it was made from.
    """
    if parent == EMBEDDED:
        return None
    folder = Path(parent)
    if not folder.is_absolute():
        return parent
    # The hub's own cache keeps a model under its name.
    if cached := re.search(r"/models--([^/]+)--([^/]+)/snapshots/", f"{folder.as_posix()}/"):
        return f"{cached[1]}/{cached[2]}"
    return _named_by_card(folder / "README.md")


def _named_by_card(card: Path) -> str | list[str] | None:
    try:
        data: Any = ModelCard.load(card, ignore_metadata_errors=True).data
    except Exception:  # Anything may stand in a parent's card, and a child needs none of it.
        return None
    for key in _NAMES:
        value = data.get(key)
        names = value if isinstance(value, list) else [value]
        ids = [name for name in names if _is_id(name)]
        if ids and len(ids) == len(names):
            return ids if isinstance(value, list) else str(ids[0])
    return None


def _is_id(name: Any) -> bool:
    """Whether it is OWNER/NAME, as the hub has it. A few old models have no owner; nor has a folder's name."""
    if not isinstance(name, str) or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
