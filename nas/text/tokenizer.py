"""A checkpoint's tokenizer, loaded without running code of the checkpoint's, and every fault of its files named.

Knows files and what libraries they take; transformers is imported when one is loaded.
"""

import hashlib
import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocklib.checkpoint import check_present, read_json, refuse_pointer
from blocklib.errors import CheckpointError
from nas.errors import MissingFileError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_JSON = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_PLAIN = ("tokenizer.model", "merges.txt", "vocab.txt")
# Any one of these lines makes a tokenizer.
_ENOUGH = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# A tokenizer that is code of its own may read a vocabulary of any name.
_DECIDING = (*_JSON, *_PLAIN, "*.py", "*.tiktoken", "*.model", "chat_template*", "additional_chat_templates/*.jinja")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_AGAIN = "copy or download it again (hf download ID --local-dir FOLDER)"
_ALLOW = "on your own machine, a job with allow_remote_code: true runs it; else give a tokenizer.json beside the model"


def check_tokenizer(folder: Path, allow_remote_code: bool = False) -> None:
    """Look at the files alone: pointers of git-lfs, cut JSON, a library that is missing, code that is not to be run.

    Raises CheckpointError naming the file, FileNotFoundError where there is no tokenizer at all.
    """
    check_present(folder)
    for name in (*_JSON, *_PLAIN):
        if (folder / name).is_file():
            read_json(folder / name) if name in _JSON else refuse_pointer(folder / name)
    if (folder / "tokenizer.json").is_file():
        _check_readable(folder / "tokenizer.json")
    if _has_code(folder):
        if not allow_remote_code and not _is_enough(folder):
            file = folder / "tokenizer_config.json"
            raise CheckpointError(file, "its tokenizer is code of its own (auto_map), which is not run", _ALLOW)
        return
    if not _is_enough(folder):
        wanted = ", or ".join(" with ".join(names) for names in _ENOUGH)
        raise MissingFileError(f"{folder} holds no tokenizer: give it {wanted}")
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        _check_library(folder / "tokenizer.model")


def load_tokenizer(folder: Path, allow_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of the checkpoint in `folder`. Raises as `check_tokenizer` does, and CheckpointError for files no
    library here can read."""
    check_tokenizer(folder, allow_remote_code)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=allow_remote_code)
    except Exception as error:
        raise _fault(folder, error) from error
    if not allow_remote_code:
        # An export must not point at code that nobody has looked at.
        tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def tokenizer_digest(folder: Path) -> str:
    """Stands for the files in `folder` that decide which tokens a text becomes, and for the libraries reading them."""
    found = hashlib.blake2b(f"{version('transformers')} {version('tokenizers')}".encode(), digest_size=16)
    for path in sorted({path for pattern in _DECIDING for path in folder.glob(pattern) if path.is_file()}):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return found.hexdigest()


def _is_enough(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _ENOUGH)


def _has_code(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("auto_map"))


def _check_library(file: Path) -> None:
    """transformers asks for the one library where the other is missing, too."""
    with file.open("rb") as opened:
        is_tiktoken = _TIKTOKEN_LINE.fullmatch(opened.readline(1000)) is not None
    kind, library = ("tiktoken", "tiktoken") if is_tiktoken else ("SentencePiece", "sentencepiece")
    if find_spec(library) is None:
        raise CheckpointError(
            file,
            f"is a {kind} model, and {library} is not installed",
            f"pip install {library}, or add a tokenizer.json",
        )


def _check_readable(file: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raise nothing more special
        kind = _model_type(file)
        of = f", whose model is of type {kind!r}" if kind else ""
        raise CheckpointError(
            file,
            f"tokenizers {version('tokenizers')} cannot read it{of}: {' '.join(str(error).split())[:200]}",
            "a newer one may (pip install -U tokenizers transformers); else " + _AGAIN,
        ) from error


def _fault(folder: Path, error: Exception) -> CheckpointError:
    """Why transformers made no tokenizer of files that can be read."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if "trust_remote_code" in said:
        file = folder / "tokenizer_config.json"
        return CheckpointError(file, "its tokenizer is code of its own (auto_map), which is not run", _ALLOW)
    if isinstance(error, KeyError):
        said = f"its files lack {said}"
    return CheckpointError(folder, f"its tokenizer cannot be made: {said}", _AGAIN)


def _model_type(file: Path) -> Any:
    model = json.loads(file.read_bytes()).get("model")
    return model.get("type") if isinstance(model, dict) else None
