"""One text file into texts, read as a stream: a whole plain file, a row of a table, an object of JSON.

Plain text is decoded, its line ends become `\\n`, and a long document comes in stretches. Knows encodings and formats.
Every fault is named with its file and, where it has one, its line. Does not know what is asked of the text.
"""

import codecs
import csv
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from nas.errors import TextError
from nas.text.chats import Chat, is_chat
from nas.text.format import Format, format_of, pyarrow, unpacked

STRETCH_CHARACTERS = 1 << 18
"""A longer document is read in stretches of at most so many characters, each a document of its own."""
_BLOCK_BYTES = 1 << 16
# A JSON file that is one value cannot be read as a stream.
_LARGEST_JSON_BYTES = 1 << 30
_ROWS_AT_ONCE = 1000
_DELIMITERS = ",;\t|"


class Stretch(NamedTuple):
    """A text or a chat, the share of its file that has been read by then, and whether a document ends with it."""

    text: str | Chat
    share: float
    is_end: bool = True


@dataclass(frozen=True)
class TextFile:
    """A file, and the column its text is in where it is a table or JSON."""

    path: Path
    column: str = "text"

    @property
    def size(self) -> int:
        """In bytes. Raises TextError where there is none."""
        with named_faults(self.path):
            return self.path.stat().st_size

    def texts(self, separator: str | None) -> Iterator[Stretch]:
        """The texts and chats, in order. Plain text is split at `separator`; rows are given whole.

        Raises TextError, naming the file.
        """
        with named_faults(self.path):
            found = format_of(self.path)
            yield from self._table(found) if found.kind in ("parquet", "arrow") else self._text(found, separator)

    def _text(self, found: Format, separator: str | None) -> Iterator[Stretch]:
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            blocks = self._blocks(unpacked(file, found.compression), found.encoding)
            for text, is_end in self._texts_of(found, blocks, separator):
                yield Stretch(text, 1.0 if file.closed else file.tell() / max(size, 1), is_end)
            # Streams that are packed may know only at their end that they are cut.
            for _ in blocks:
                pass

    def _texts_of(
        self, found: Format, blocks: Iterator[str], separator: str | None
    ) -> Iterator[tuple[str | Chat, bool]]:
        if found.kind == "plain":
            return _stretches(blocks, separator)
        return ((row, True) for row in self._rows(found, blocks))

    def _rows(self, found: Format, blocks: Iterator[str]) -> Iterator[str | Chat]:
        if found.kind == "json lines":
            return self._json_lines(_lines(blocks))
        if found.kind == "json":
            return self._json(blocks)
        return self._csv(f"{line}\n" for line in _lines(blocks))

    def _blocks(self, stream: IO[bytes], encoding: str) -> Iterator[str]:
        """The decoded stream, a block at a time, every line end `\\n`."""
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        line = 1
        while True:
            block = stream.read(_BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise TextError(self._undecodable(error, line)) from error
            line += text.count("\n")
            if text:
                yield text
            if not block:
                return

    def _undecodable(self, error: UnicodeDecodeError, line: int) -> str:
        line += error.object[: error.start].decode(error.encoding, errors="ignore").count("\n")
        if "unexpected end" in error.reason or "truncated" in error.reason:
            return f"{self.path}, line {line}: the file ends within a character, so a part is missing; fetch it again"
        byte = error.object[error.start : error.start + 1]
        meant = byte.decode("cp1252", errors="replace")
        return (
            f"{self.path}, line {line}: byte 0x{byte.hex()} is not {error.encoding.upper()} (in Windows-1252, much "
            f"like Latin-1, it is {meant!r}); convert the file, as `iconv -f CP1252 -t UTF-8` does, or leave it out"
        )

    def _json_lines(self, lines: Iterator[str]) -> Iterator[str | Chat]:
        number, line = 0, next(lines, None)
        while line is not None:
            number, following = number + 1, next(lines, None)
            if line.strip("\ufeff \t"):
                place = f"{self.path}, line {number}"
                row = _parsed(line.lstrip("\ufeff"), place, is_last=following is None)
                if not isinstance(row, dict):
                    raise TextError(f"{place} is {_a(row)}, not an object like {{{json.dumps(self.column)}: ...}}")
                yield self._text_in(row, place)
            line = following

    def _json(self, blocks: Iterator[str]) -> Iterator[str | Chat]:
        """A list of objects; or one object, whose column is a text or a list of them."""
        if self.path.stat().st_size > _LARGEST_JSON_BYTES:
            raise TextError(
                f"{self.path} is one JSON value of more than 1 GiB, which cannot be read in parts; make JSON lines of "
                "it, as `jq -c '.[]'` does"
            )
        value = _parsed("".join(blocks).lstrip("\ufeff"), str(self.path), is_last=True)
        if isinstance(value, dict):
            texts = value.get(self.column)
            if isinstance(texts, list) and not is_chat(texts):
                value = [{self.column: text} for text in texts]
            else:
                value = [value]
        if not isinstance(value, list):
            raise TextError(f"{self.path} is {_a(value)}, not a list of objects")
        for number, row in enumerate(value, 1):
            place = f"{self.path}, object {number}"
            if not isinstance(row, dict):
                raise TextError(f"{place} is {_a(row)}, not an object like {{{json.dumps(self.column)}: ...}}")
            yield self._text_in(row, place)

    def _text_in(self, row: dict[str, Any], place: str) -> str | Chat:
        if self.column not in row:
            raise missing_column(place, self.column, row)
        return checked(row[self.column], self.column, place)

    def _csv(self, lines: Iterable[str]) -> Iterator[str]:
        csv.field_size_limit(sys.maxsize)
        lines = iter(lines)
        first = next(lines, "").lstrip("\ufeff")
        headers = [next(csv.reader([first], delimiter=delimiter), []) for delimiter in _DELIMITERS]
        columns = next((columns for columns in headers if self.column in columns), max(headers, key=len))
        if self.column not in columns:
            raise missing_column(str(self.path), self.column, columns)
        # Lines are counted from the second on.
        reader = csv.reader(lines, delimiter=_DELIMITERS[headers.index(columns)], strict=True)
        try:
            for row in reader:
                if row and len(row) != len(columns):
                    raise TextError(
                        f"{self.path}, line {reader.line_num + 1}: {len(row)} fields, and the header names "
                        f"{len(columns)}; a field with a delimiter or a line end in it stands in quotes"
                    )
                if row:
                    yield row[columns.index(self.column)]
        except csv.Error as error:
            cut = "it may be cut" if "end of data" in str(error) else "a field that begins with a quote ends with one"
            raise TextError(f"{self.path}, line {reader.line_num + 1}: {error}; {cut}") from error

    def _table(self, found: Format) -> Iterator[Stretch]:
        arrow = pyarrow(f"{self.path}: reading Parquet and Arrow")
        seen = 0
        with arrow.memory_map(str(self.path)) as file:
            if found.kind == "parquet":
                table = arrow.parquet.ParquetFile(file)
                schema, rows = table.schema_arrow, table.metadata.num_rows
            else:
                is_file = file.read(6) == b"ARROW1"
                file.seek(0)
                table = arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file)
                schema, rows = table.schema, None
            if self.column not in schema.names:
                raise missing_column(str(self.path), self.column, schema.names)
            if found.kind == "parquet":
                batches = table.iter_batches(_ROWS_AT_ONCE, columns=[self.column])
            else:
                batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
            for batch in batches:
                for text in batch.column(self.column).to_pylist():
                    seen += 1
                    share = seen / rows if rows else file.tell() / file.size()
                    yield Stretch(checked(text, self.column, f"{self.path}, row {seen}"), share)


def missing_column(place: str, column: str, columns: Iterable[str]) -> TextError:
    """The message for a table, or a row of one, that lacks its text column."""
    names = [str(name) if len(str(name)) <= 40 else f"{str(name)[:40]}..." for name in columns]
    has = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
    return TextError(
        f"{place} has no column {column!r}; it has {has}; write {{dataset: FILE_OR_FOLDER, column: NAME}} to read "
        "another"
    )


def checked(text: object, column: str, place: str) -> str | Chat:
    """A cell that must be text, or a chat; null is no text, as an empty one is. Raises TextError."""
    if text is None:
        return ""
    if is_chat(text):
        return Chat(cast(list[dict[str, Any]], text), place)
    if not isinstance(text, str):
        raise TextError(f"{place}: {column!r} is {_a(text)}, not text: {str(text)[:60]}")
    return text


@contextmanager
def named_faults(path: Path | str) -> Iterator[None]:
    """Errors of the system and of the libraries that unpack, with the file's name."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise TextError(f"{path} is damaged or cut: {error}; fetch it again") from error
    except OSError as error:
        if error.errno and error.strerror:
            raise TextError(f"{path}: {error.strerror}") from error
        # pyarrow's errors may have many lines.
        raise TextError(f"{path} is damaged or cut: {' '.join(str(error).split())}; fetch it again") from error
    except TextError:
        raise
    except ValueError as error:
        # pyarrow raises ValueErrors of many lines, too.
        raise TextError(f"{path} cannot be read: {str(error).splitlines()[0]}; fetch or write it again") from error


def _parsed(text: str, place: str, is_last: bool) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        remedy = "mend or remove it"
        if is_last and (error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())):
            remedy = "it is cut; fetch the file again, or remove what is left of it"
        elif error.msg.startswith("Extra data"):
            remedy = "a file of one object a line is named .jsonl"
        where = place if ", line" in place else f"{place}, line {error.lineno}"
        raise TextError(f"{where} is not JSON: {error.msg}: character {error.colno}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        # Nested too deep, or a number of too many digits.
        raise TextError(f"{place}: {str(error).partition(';')[0]}; mend or remove it") from error


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    """Without their ends. Only `\\n` ends a line: JSON strings may hold the others."""
    parts: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
    if last := "".join(parts):
        yield last


def _stretches(blocks: Iterator[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """The text between separators; long text comes in stretches that end with a line if they can. With each, whether
    the text ends with it."""
    rest = ""
    longest = STRETCH_CHARACTERS + len(separator or "")
    for block in blocks:
        rest += block
        if separator:
            *whole, rest = rest.split(separator)
            yield from ((text, True) for text in whole)
        while len(rest) > longest:
            end = rest.rfind("\n", STRETCH_CHARACTERS // 2, STRETCH_CHARACTERS) + 1 or STRETCH_CHARACTERS
            yield rest[:end], False
            rest = rest[end:]
    yield rest, True


def _a(value: object) -> str:
    """The JSON word for a value's type."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
