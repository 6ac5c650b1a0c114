"""The oldest transformers that runs the code of an exported folder, and the lines that check it before anything else is
imported. This file knows no model.
"""

import ast

LEAST_TRANSFORMERS = "5.19"

_CHECK = f"""from transformers.utils.versions import require_version

require_version(
    "transformers>={LEAST_TRANSFORMERS}", "The code of this model needs it: pip install -U transformers"
)
"""


def checked(code: str) -> str:
    """A Python text that checks the version first. Comments and the docstring at its head stay there."""
    first = next(node for node in ast.parse(code).body if not _is_text(node))
    lines = code.splitlines(keepends=True)
    return "".join([*lines[: first.lineno - 1], _CHECK, "\n", *lines[first.lineno - 1 :]])


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
