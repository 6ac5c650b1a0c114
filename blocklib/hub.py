"""Where a checkpoint lies on this machine: in a folder, or in the hub's cache, where what it lacks is fetched first.

Only what is needed is fetched: the small files first, so that what config.json tells against a parent is said before
gigabytes of weights are on their way, then one set of weights.
"""

from functools import cache
from pathlib import Path

from blocklib.checkpoint import WEIGHTS, read_configuration, weight_map
from blocklib.errors import CheckpointError

_SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
_CODE = "*.py"


def folder_of(source: str, weights: bool = True, code: bool = False) -> Path:
    """The folder of a checkpoint that is named by a path or a hub id; a path may lead nowhere.

    `weights` of a hub's repository are fetched, and Python files with `code`; nothing here runs them. Raises
    CheckpointError where the hub does not give it, and what `read_configuration` raises.
    """
    path = Path(source).expanduser()
    return path if path.is_absolute() or path.exists() else _fetched(source, weights, code)


@cache
def _fetched(source: str, weights: bool, code: bool) -> Path:
    folder = _snapshot(source, [*_SMALL, *([_CODE] if code else [])])
    read_configuration(folder)
    for name in WEIGHTS if weights else ():
        _snapshot(source, [name])
        if (folder / name).is_file():
            if name.endswith(".index.json"):
                _snapshot(source, sorted(set(weight_map(folder / name).values())))
            break
    return folder


def _snapshot(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        # The first line says it; what follows is advice of the hub library's own.
        said = str(error).strip().splitlines()[0]
        raise CheckpointError(
            source,
            f"is no folder here, and the hub gives no such checkpoint ({said})",
            "check the name, or give the path of a folder; a gated one takes `hf auth login` first",
        ) from error
