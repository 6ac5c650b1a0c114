"""An architecture in a line."""

from collections import Counter

from blocklib.block import Architecture


def summary(architecture: str) -> str:
    """An architecture in a line: its blocks, counted where they repeat."""
    counted = Counter(str(block) for _, block in Architecture.parse(architecture).placed())
    return ", ".join(f"{count} x {block}" for block, count in counted.items())
