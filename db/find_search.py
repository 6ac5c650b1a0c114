"""The search that a text means: its id, its name, or how its id begins. Knows no database."""

from collections.abc import Sequence
from difflib import get_close_matches

from db.errors import NotFoundError
from db.models import SearchRow


def find_search(searches: Sequence[SearchRow], text: str, place: str) -> SearchRow:
    """As `Store.find_search`; `searches` are all of the database at `place`, the latest first."""
    exact = [search for search in searches if search.id == text] or [
        search for search in searches if search.name == text
    ]
    if exact:
        return exact[0]
    begun = [search for search in searches if text and search.id.startswith(text)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise NotFoundError(f"{text!r} begins several ids: {', '.join(search.id for search in begun)}")
    names = list(dict.fromkeys(search.name for search in searches))
    nearest = get_close_matches(text, names, cutoff=0.0)
    there = f"there is {', '.join(nearest)}" if names else f"there is none yet in {place}"
    raise NotFoundError(f"no search {text!r}; {there}")
