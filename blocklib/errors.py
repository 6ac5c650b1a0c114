"""Errors about a spelling, a subblock, a checkpoint or a subblock library. Standard library only."""

from pathlib import Path

from nas.errors import NasError


class BlocklibError(NasError):
    """The base of this room's errors."""


class SpellingError(BlocklibError, ValueError):
    """A text spells no subblock, block, choice or architecture."""


class SubblockError(BlocklibError, ValueError):
    """A subblock is of no known kind, has a size its kind does not take, or does not fit the parent."""


class SettingError(BlocklibError, ValueError):
    """A setting of the job is too small or too large for this parent or this text; says which."""


class NotFiniteError(BlocklibError, ValueError):
    """A loss, a score or a weight became NaN or infinite; the message says which and where."""


class UnsupportedModelError(BlocklibError, ValueError):
    """This package cannot take the model's layout apart."""


class CheckpointError(BlocklibError, ValueError):
    """A checkpoint cannot be used as it is: which file, what is wrong with it, and what to do."""

    def __init__(self, file: Path | str, cause: str, remedy: str):
        super().__init__(file, cause, remedy)
        self.file, self.cause, self.remedy = file, cause, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.cause}; {self.remedy}"


class MissingCheckpointError(BlocklibError, FileNotFoundError):
    """A checkpoint's folder, its configuration or its weights are not there."""


class MissingSubblockError(BlocklibError, FileNotFoundError):
    """A subblock is not in the library: it was never built, or was deleted since."""


class WeightsFileError(BlocklibError, OSError):
    """A file of weights that this package keeps cannot be written, or is damaged."""


class ActivationsError(BlocklibError, OSError):
    """The parent's cached activations cannot be written, or are not there."""


class UnsupportedFormatError(BlocklibError, ValueError):
    """A file format cannot carry a subblock, a feature of the parent, or a precision; says which and why."""


class MissingLlamaCppError(BlocklibError, OSError):
    """llama.cpp is needed and not installed; says what to type."""
