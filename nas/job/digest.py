"""Keys: a digest of *what* and *under what*. Two things with one key are the same thing."""

import hashlib
import json
from typing import Any


def digest(*parts: Any) -> str:
    """16 hex digits of plain values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
