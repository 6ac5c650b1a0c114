"""A data set, as `{dataset: ...}` names it, into what can be read as a stream: its files, or its rows.

Files of a format we know are read by us, so that a fault has a file and a line. The `datasets` library says which files
a folder's split has, and reads what was saved by it, what lies on the hub, and what it alone understands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import TextError
from nas.job.data import HubDataset
from nas.text.files import Stretch, TextFile, checked, missing_column, named_faults

_ROWS_AT_ONCE = 1000
_OUR_FORMATS = {"json", "csv", "parquet", "arrow", "text"}
# By these files the two kinds of folder that `save_to_disk` writes are known.
_SAVED_SPLITS, _SAVED = "dataset_dict.json", "state.json"


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a loaded dataset, which stay on disk until they are read."""

    name: str
    rows: Any
    column: str

    @property
    def size(self) -> int:
        """In bytes, about."""
        return int(self.rows.data.nbytes)

    def texts(self, separator: str | None) -> Iterator[Stretch]:
        """Each row's text or chat. Raises TextError."""
        seen = 0
        with named_faults(self.name):
            for batch in self.rows.select_columns([self.column]).iter(batch_size=_ROWS_AT_ONCE):
                for text in batch[self.column]:
                    found = checked(text, self.column, f"{self.name}, row {seen}")
                    seen += 1
                    yield Stretch(found, seen / len(self.rows))


def parts_of(source: HubDataset) -> list[TextFile | DatasetRows]:
    """The parts of one split of a dataset. Raises TextError."""
    path = Path(source.dataset)
    if path.is_file():
        if source.split != "train" or source.config is not None:
            raise TextError(f"{path} is one file: its only split is train, and it has no config")
        return [TextFile(path, source.column)]
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise TextError("a dataset needs one more library: pip install 'puzzle-nas[datasets]'") from error
    try:
        if (path / _SAVED_SPLITS).is_file() or (path / _SAVED).is_file():
            return [_rows(source, _saved(datasets, source))]
        return _loaded(datasets, source)
    except TextError:
        raise
    except datasets.exceptions.DatasetGenerationError as error:
        raise TextError(f"{source.dataset}: {error.__cause__ or error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise TextError(f"{source.dataset}: {str(error) or type(error).__name__}") from error


def _saved(datasets: Any, source: HubDataset) -> Any:
    """The result of `save_to_disk`: a dataset, or one for each split."""
    try:
        saved = datasets.load_from_disk(source.dataset)
    except (OSError, ValueError, KeyError) as error:
        raise TextError(
            f"{source.dataset}, as `save_to_disk` writes it, cannot be read: {error}; save it again"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if source.split not in saved:
        raise TextError(f"{source.dataset} has no split {source.split!r}; it has {', '.join(saved)}")
    return saved[source.split]


def _loaded(datasets: Any, source: HubDataset) -> list[TextFile | DatasetRows]:
    builder = datasets.load_dataset_builder(source.dataset, source.config)
    files = builder.config.data_files or {}
    if Path(source.dataset).is_dir() and builder.name in _OUR_FORMATS and source.split in files:
        return [TextFile(Path(file), source.column) for file in files[source.split]]
    try:
        rows = datasets.load_dataset(source.dataset, source.config, split=source.split)
    except datasets.exceptions.DatasetGenerationError:
        # The library names no file; our own reading does.
        if Path(source.dataset).is_dir() and builder.name in _OUR_FORMATS:
            for file in (file for split in files.values() for file in split):
                for _ in TextFile(Path(file), source.column).texts(None):
                    pass
        raise
    return [_rows(source, rows)]


def _rows(source: HubDataset, rows: Any) -> DatasetRows:
    if source.column not in rows.column_names:
        raise missing_column(source.dataset, source.column, rows.column_names)
    return DatasetRows(source.dataset, rows, source.column)
