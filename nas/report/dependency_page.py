"""The block-dependency matrix as a page of its own, for `nas dependency --html`."""

from pathlib import Path

from db.models import now
from nas.files.output import write_whole
from nas.report.dependency import dependency_map
from nas.report.page import environment
from nas.scoring.block_dependency import Dependency


def write_dependency(found: Dependency, path: Path) -> Path:
    """Write one self-contained HTML file, whole or not at all, and return its path. Raises OSError."""
    shown = {"found": found, "dependency": dependency_map(found.matrix), "chosen": None, "written_at": now()}
    return write_whole(path, environment().get_template("dependency_page.html.j2").render(shown).encode())
