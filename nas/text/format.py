"""The format of a text file, told from its first bytes and then from its name: a name may promise what is not there.

Knows magic numbers, byte order marks, and how JSON, HTML and a Git LFS pointer begin. Refuses what holds no text, and
says what it is and how to get the text out of it. Does not read the text: `nas/text/files.py` does.
"""

import bz2
import gzip
import json
import lzma
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from nas.errors import TextError

Kind = Literal["plain", "json", "json lines", "csv", "parquet", "arrow"]
Compression = Literal["gzip", "bzip2", "xz", "zstd"]

# The first bytes that a format is told from.
_HEAD_BYTES = 1 << 16
_COMPRESSED: dict[bytes, Compression] = {
    rb"\x1f\x8b\x08": "gzip",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
    rb"(\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)": "zstd",
}
_TABLES: dict[bytes, Kind] = {rb"PAR1": "parquet", rb"(ARROW1|\xff\xff\xff\xff)": "arrow"}
_UNPACK = "unpack it and name the files in it"
_EXPORT = "export its text as plain text or JSON lines"
_NO_TEXT = {
    rb"version https://git-lfs\.github\.com/spec": (
        "a Git LFS pointer, not the file itself",
        "fetch the file with `git lfs pull`",
    ),
    rb"(PK\x03\x04|PK\x05\x06)": ("a zip archive (.docx, .xlsx, .epub and .npz are such, too)", _UNPACK),
    rb"(7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x04\x22\x4d\x18)": ("an archive", _UNPACK),
    rb"(?s).{257}ustar": ("a tar archive", _UNPACK),
    rb"%PDF-": ("a PDF", _EXPORT),
    rb"\{\\rtf": ("rich text (RTF)", _EXPORT),
    rb"SQLite format 3\x00": ("an SQLite database", _EXPORT),
    rb"(\x89PNG|\xff\xd8\xff|GIF8|RIFF|ID3|OggS)": ("an image or a recording", "leave it out"),
    rb"(\x7fELF|GGUF|\x80[\x02-\x05]|\x93NUMPY|\x89HDF)": ("a binary file", "leave it out"),
}  # fmt: skip
# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_MARKUP = re.compile(r"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|\?xml)[\s>]", re.IGNORECASE | re.DOTALL)
_OBJECT = re.compile(r'\{\s*"[^"\n]*"\s*:')
_OBJECTS = re.compile(r"\[\s*\{")
_PACKED_NAMES = {".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd"}
_LINES_NAMES = {".jsonl", ".ndjson", ".jsonlines"}
_TABLE_NAMES: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


@dataclass(frozen=True)
class Format:
    """The format of a file. `encoding` is a codec's name; tables have none of their own."""

    kind: Kind
    compression: Compression | None
    encoding: str


def format_of(path: Path) -> Format:
    """The format of a file. Raises TextError for one that holds no text, and OSError where it cannot be opened."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        _refuse_no_text(path, head)
        compression = next((name for magic, name in _COMPRESSED.items() if re.match(magic, head)), None)
        if compression:
            file.seek(0)
            head = unpacked(file, compression).read(_HEAD_BYTES)
            _refuse_no_text(path, head)
    table = next((kind for magic, kind in _TABLES.items() if re.match(magic, head)), None)
    if table and compression:
        raise TextError(f"{path} is a compressed {table.capitalize()} file, which is read from its end; unpack it")
    name = _name_without_compression(path)
    if table is None and name in _TABLE_NAMES and head:
        raise TextError(
            f"{path} is named {name}, but is not a {_TABLE_NAMES[name].capitalize()} file; fetch or write it again"
        )
    if table:
        return Format(table, None, "utf-8")
    encoding = _encoding_of(path, head)
    text = head.decode(encoding, errors="ignore").lstrip("\ufeff")
    if _MARKUP.match(text):
        raise TextError(
            f"{path} is HTML or XML, and the model would learn the tags as text; extract the text, or, if the model "
            'must write tags, put it into JSON lines: {"text": "<html>..."}'
        )
    return Format(_kind_of(path, name, text), compression, encoding)


def unpacked(file: IO[bytes], compression: Compression | None) -> IO[bytes]:
    """The stream that an open file holds in packed form. Raises TextError for zstd where no library reads it."""
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if compression == "bzip2":
        return cast(IO[bytes], bz2.BZ2File(file))
    if compression == "xz":
        return cast(IO[bytes], lzma.LZMAFile(file))
    if compression == "zstd":
        return cast(IO[bytes], pyarrow("a .zst file").CompressedInputStream(file, "zstd"))
    return file


def pyarrow(what: str) -> Any:
    """The library that reads tables. Raises TextError, naming `what` takes it, where it is not installed."""
    try:
        import pyarrow.ipc  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise TextError(f"{what} needs one more library: pip install 'puzzle-nas[datasets]'") from error
    return pyarrow


def _refuse_no_text(path: Path, head: bytes) -> None:
    for magic, (what, remedy) in _NO_TEXT.items():
        if re.match(magic, head):
            raise TextError(f"{path} is {what}; {remedy}")


def _encoding_of(path: Path, head: bytes) -> str:
    marked = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if marked:
        return marked
    if b"\x00" in head:
        zeros = head.count(b"\x00")
        if max(head[::2].count(b"\x00"), head[1::2].count(b"\x00")) == zeros > len(head) // 4:
            raise TextError(
                f"{path} looks like UTF-16 without a byte order mark; convert it to UTF-8, as `iconv -f UTF-16LE -t "
                "UTF-8` does"
            )
        raise TextError(f"{path} is a binary file: it holds zero bytes; leave it out")
    return "utf-8"


def _name_without_compression(path: Path) -> str:
    """The last ending that tells of the content, in lower case."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in _PACKED_NAMES]
    return endings[-1] if endings else ""


def _kind_of(path: Path, name: str, head: str) -> Kind:
    """The format of a text file with this name that begins with `head`."""
    if name in (".csv", ".tsv"):
        return "csv"
    start = head.lstrip()
    if name in _LINES_NAMES:
        return "json" if _OBJECTS.match(start) else "json lines"
    if name == ".json" and "\n" not in start.rstrip():
        return "json"
    if _is_json_lines(start):
        return "json lines"
    if name in (".json", ".ipynb"):
        return "json"
    if _OBJECT.match(start) or _OBJECTS.match(start):
        return "json" if _closes(path, start[0]) else "plain"
    return "plain"


def _is_json_lines(start: str) -> bool:
    """Whether two of the first three lines are objects, or all there are: a first may be cut, a heading come before."""
    *whole, last = start.split("\n", 3)
    if len(start) < _HEAD_BYTES // 4:
        whole.append(last)  # no line of it is cut by the end of the head
    lines = [line for line in whole[:3] if line.strip()]
    if not lines:
        return bool(_OBJECT.match(start))
    return sum(map(_is_object, lines)) >= min(2, len(lines))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict) and len(line.strip()) > len("{}")
    except (ValueError, RecursionError):
        return False


def _closes(path: Path, bracket: str) -> bool:
    """Whether the file ends with the bracket that closes its first."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 256))
        return file.read().rstrip(b"\x00\r\n\t ").endswith({"{": b"}", "[": b"]"}[bracket])
