"""An architecture in a line."""

from collections import Counter

from blocklib.block import Architecture


def summary(architecture: str) -> str:
    """An architecture in a line: its blocks, counted where they repeat, then its precisions, counted too, and the type
    of its keys and values."""
    found = Architecture.parse(architecture)
    blocks = Counter(str(block.unrounded) for _, block in found.placed())
    stored = Counter(part.precision for choice in found.choices() for part in choice.parts if part.precision)
    told = ", ".join(f"{count} x {block}" for block, count in blocks.items())
    told += f"; stored as {_counted(stored)}" if stored else ""
    return f"{told}; keys and values in {found.cache}" if found.cache else told


def _counted(precisions: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(precisions.items()))
