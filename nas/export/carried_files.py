"""The files of the parent that a child takes over as they are: the tokenizer and the licence.

A tokenizer that transformers writes anew loses files (`tokenizer.model`), and names a class that older versions do not
know. So only what the parent's files lack is written. This file knows no format.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.checkpoint import read_json
from nas.export.parent_settings import ParentSettings

_CONFIG = "tokenizer_config.json"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "additional_chat_templates/*.jinja"),
)
_LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, parent: ParentSettings | None, out: Path) -> None:
    """The tokenizer's files in `out`: the parent's where there are some, the loaded tokenizer's for the rest."""
    parent_folder = None if parent is None else parent.folder
    if parent_folder is None or not _is_whole(parent_folder):
        tokenizer.save_pretrained(out)
    if parent_folder is not None:
        copy_tokenizer(parent_folder, out)


def copy_tokenizer(parent_folder: Path, out: Path) -> tuple[str, ...]:
    """Copy the parent's tokenizer files and its licence. Returns their names, relative to the folder."""
    found = {path for pattern in (*_TOKENIZER, *_LICENCE) for path in parent_folder.glob(pattern)}
    if _names_its_class(parent_folder):
        found.add(parent_folder / _CONFIG)
    return tuple(_copied(parent_folder, sorted(path for path in found if path.is_file()), out))


def _is_whole(folder: Path) -> bool:
    """Whether its files make a tokenizer in any folder that they are copied to."""
    return (folder / "tokenizer.json").is_file() and _names_its_class(folder)


def _names_its_class(folder: Path) -> bool:
    """Without a class, transformers takes the one of the model's type, which is another for a child. Code of the
    parent's own is copied only by transformers, where the job allows it."""
    file = folder / _CONFIG
    settings = read_json(file) if file.is_file() else {}
    return bool(settings.get("tokenizer_class")) and not settings.get("auto_map")


def _copied(parent_folder: Path, files: list[Path], out: Path) -> Iterator[str]:
    for file in files:
        name = file.relative_to(parent_folder)
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, out / name)
        yield name.as_posix()
