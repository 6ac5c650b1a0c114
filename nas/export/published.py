"""The front matter of a child's card, in the form that a hub accepts. The parent's published name and its licence come
from the folder's own card; no hub is asked. A hub refuses a local path as a name.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from nas.job.request import EMBEDDED

_NAMES = ("model_id", "model_name", "base_model")
"""Keys of a card's front matter that name the model itself, or else the model that it was made from."""

_LICENCE = ("license", "license_name", "license_link", "language")
"""Keys of the parent's front matter that hold for its child too."""


def card_data(parent: str, folder: Path) -> ModelCardData:
    """The front matter of a child of this search's parent, whose files are in `folder`."""
    told = _front_matter(folder / "README.md")
    kept = {key: told[key] for key in _LICENCE if told.get(key)}
    name = published_name(parent)
    if name is not None:
        kept |= {"base_model": name, "base_model_relation": "finetune"}
    return ModelCardData(**kept, library_name="transformers", pipeline_tag="text-generation", tags=["puzzle-nas"])


def published_name(parent: str) -> str | list[str] | None:
    """The hub's name of a search's parent: the given id, or the id in its card; None if there is neither. It is a list
    if the card names several models that the parent was made from.
    """
    if parent == EMBEDDED:
        return None
    folder = Path(parent)
    if not folder.is_absolute():
        return parent
    # The hub's cache keeps a model in a folder with its name.
    if cached := re.search(r"/models--([^/]+)--([^/]+)/snapshots/", f"{folder.as_posix()}/"):
        return f"{cached[1]}/{cached[2]}"
    return _named_by_card(folder / "README.md")


def _named_by_card(card: Path) -> str | list[str] | None:
    data = _front_matter(card)
    for key in _NAMES:
        value = data.get(key)
        names = value if isinstance(value, list) else [value]
        ids = [str(name) for name in names if _is_id(name)]
        if ids and len(ids) == len(names):
            return ids if isinstance(value, list) else str(ids[0])
    return None


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        return dict(ModelCard.load(card, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # A parent's card may hold anything, and a child needs none of it.
        return {}


def _is_id(name: Any) -> bool:
    """Whether it has the hub's form OWNER/NAME. A few old models have no owner, but neither does the name of a
    folder."""
    if not isinstance(name, str) or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
