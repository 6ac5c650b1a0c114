"""The folder of a parent's checkpoint: its own, the hub's copy of it, or what a GGUF file is unpacked to, once.

A GGUF file is unpacked to a folder of `home`, under a digest of its bytes. The folder appears whole or not at all, and
from then on it is a checkpoint like any other.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from blocklib.gguf_header import GgufHeader, inspect_gguf, is_gguf
from blocklib.hub import folder_of
from nas.files.permissions import open_as_usual
from nas.text.gguf_tokenizer import check_gguf_tokenizer, save_tokenizer

# Part of the name of every unpacked folder: raise it when the same file would be unpacked to something else.
_VERSION = 2


def parent_folder(
    checkpoint: str, home: Path, weights: bool = True, code: bool = False, say: Callable[[str], object] = lambda _: None
) -> Path:
    """Where the files of a path or a hub id are; a path may lead nowhere. `say` is told before a file is unpacked.

    Raises as `folder_of` does, and CheckpointError, UnsupportedModelError or FileNotFoundError for a GGUF file that can
    be no parent.
    """
    if not is_gguf(checkpoint):
        return folder_of(checkpoint, weights, code)
    header = check_gguf(Path(checkpoint))
    folder = home / "parents" / _name(header.file)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"unpacking {header.file.name} ({header.stored})")
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _unpack(header, folder)
    return folder


def check_gguf(file: Path) -> GgufHeader:
    """The header of a GGUF file that can be a parent, as far as it tells. Reads no weights; raises as `parent_folder`
    does."""
    header = inspect_gguf(file)
    check_gguf_tokenizer(header)
    return header


def stored_in(checkpoint: str) -> tuple[str, ...]:
    """A sentence on the precision that a parent is stored in, where it is a GGUF file."""
    return (f"parent: {check_gguf(Path(checkpoint)).stored}",) if is_gguf(checkpoint) else ()


def _unpack(header: GgufHeader, folder: Path) -> None:
    import nas.terminal.quiet  # noqa: F401  (silences libraries before they load)
    from blocklib.gguf_weights import save_model

    whole = folder.with_name(f".unpacking-{folder.name}")
    shutil.rmtree(whole, ignore_errors=True)  # a killed process may have left it
    whole.mkdir()
    try:
        save_tokenizer(header, whole)
        save_model(header, whole)
        open_as_usual(whole)
        whole.rename(folder)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _name(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "blake2b").hexdigest()[:16]
    return f"{digest}-{_VERSION}"
