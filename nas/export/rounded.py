"""Matrices that are rounded before an export writes them, and what an export in compressed-tensors' formats needs."""

from dataclasses import dataclass
from importlib.util import find_spec

from blocklib.errors import UnsupportedFormatError
from blocklib.formats.compressed_types import COMPRESSED, RUN_BY
from blocklib.formats.gguf import Stored
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import own_shape
from blocklib.precisions.compressed_child import CompressedChild, compressed_child
from nas.errors import MissingFileError, UnsupportedExportError

SECTION = {"quantization_config": "how the matrices are stored"}
"""The field of config.json that such an export adds, with its reason."""
_INSTALL = "pip install 'puzzle-nas[compressed-tensors]'"


@dataclass(frozen=True, eq=False)
class RoundedMatrices:
    """`stored` are the matrices that are rounded already, by their names in the child; `precision` is that of subblocks
    that have none of their own, "" being none."""

    precision: str = ""
    stored: Stored | None = None


def rounded_once(child: PuzzleNasForCausalLM, rounded: RoundedMatrices) -> RoundedMatrices:
    """The same with every matrix rounded that `compressed` would round: to be asked before the child's own type is made
    coarser."""
    found = _compressed(child, rounded)
    return RoundedMatrices(rounded.precision, dict(rounded.stored or {}) | dict(found.rows))


def compressed(child: PuzzleNasForCausalLM, rounded: RoundedMatrices | None) -> CompressedChild | None:
    """The child in compressed-tensors' formats; None where no matrix is in one.

    Raises UnsupportedExportError for a precision that is none of them, or that the child's rows do not fit, and
    MissingFileError where transformers could not load the result.
    """
    found = None if rounded is None else _compressed(child, rounded)
    if found is None or not found.formats:
        return None
    if find_spec("compressed_tensors") is None:
        raise MissingFileError(
            f"transformers checks the export, and needs compressed-tensors for {' and '.join(COMPRESSED)}: {_INSTALL}"
        )
    return found


def _compressed(child: PuzzleNasForCausalLM, rounded: RoundedMatrices) -> CompressedChild:
    if rounded.precision not in ("", *COMPRESSED):
        raise UnsupportedExportError(
            f"precision {rounded.precision!r}: this format has {' and '.join(COMPRESSED)}; format gguf has llama.cpp's"
        )
    if rounded.precision and own_shape(child.config).layer_norm:
        raise UnsupportedExportError(
            f"matrices of GPT-2's layout are not written in {rounded.precision}; leave out the precision"
        )
    try:
        return compressed_child(child, rounded.precision, rounded.stored)
    except UnsupportedFormatError as error:
        raise UnsupportedExportError(str(error)) from error


def notes_on(child: CompressedChild | None) -> tuple[str, ...]:
    """Sentences that a user of such a folder should read."""
    if child is None:
        return ()
    names = sorted({str(format) for format in child.formats.values()})
    runs = [f"{RUN_BY[name]}." for name in COMPRESSED if name in {format.name for format in child.formats.values()}]
    return (
        f"Matrices of layers are stored as {', '.join(names)}; embedding, head and norms are not. What enters a matrix "
        f"is not rounded. transformers loads the folder with the package compressed-tensors.",
        *runs,
    )
