"""fp8 and int4 against the package compressed-tensors, whose own code reads what is packed here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_precisions import HOWS, drawn, errors_O, seeds
from torch import Tensor

from blocklib.errors import NotFiniteError, UnsupportedFormatError
from blocklib.formats.compressed_config import quantization_config
from blocklib.formats.compressed_types import COMPRESSED, CompressedFormat, compressed_format, tensors_of_matrix
from blocklib.precisions.feedback import feedback
from blocklib.precisions.moments import DAMPING, InputMoments
from blocklib.precisions.rounding import How, round_matrix, unpacked

compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")

NAME = "model.layers.0.mlp.up_proj.weight"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROWS: dict[str, Tensor] = {
    "random": torch.randn(60, 384, generator=generator(0)),
    "constant": torch.randn(60, 1, generator=generator(1)).expand(60, 384),
    "zero": torch.zeros(3, 384),
    "a zero row and an outlier": torch.eye(4, 384) * 7,
    "huge": torch.randn(60, 384, generator=generator(2)) * 1e37,
    "small": torch.randn(60, 384, generator=generator(3)) * 1e-7,
    "denormal": torch.randn(60, 384, generator=generator(4)) * 1e-40,
    "groups of 64": torch.randn(8, 576, generator=generator(5)),
    "groups of 32": torch.randn(8, 96, generator=generator(6)),
    "as long as 576 in bytes": torch.randn(8, 544, generator=generator(7)),
}


def read_by_package(packed_OB: Tensor, format: CompressedFormat) -> Tensor:
    """The matrix of the file's tensors, as the package decompresses them under the file's own configuration."""
    section = quantization_config({NAME: format})
    (scheme,) = quantization.QuantizationConfig.model_validate(section).config_groups.values()
    compressor = compressors.BaseCompressor.get_value_from_registry(section["format"])
    module = NAME.removesuffix("weight")
    held = {name.removeprefix(module): tensor for name, tensor in tensors_of_matrix(NAME, packed_OB, format).items()}
    held["weight_scale"] = held["weight_scale"].float()  # to compute in float32, as it is read here
    found: Tensor = compressor.decompress(held, scheme)["weight"]
    return found


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("precision", COMPRESSED)
def test_the_package_reads_what_is_unpacked_here(precision: str, rows: str) -> None:
    weight_OI = ROWS[rows]
    format = compressed_format(precision, weight_OI.shape[1])
    packed_OB = round_matrix(weight_OI, format, how="plain")
    held_OI = unpacked(packed_OB, format)
    assert torch.equal(held_OI, read_by_package(packed_OB, format))
    assert held_OI.isfinite().all()
    assert (held_OI[(weight_OI == 0).all(1)] == 0).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("precision", COMPRESSED)
def test_bytes_by_arithmetic_are_the_bytes_of_the_tensors(precision: str, rows: str) -> None:
    weight_OI = ROWS[rows]
    format = compressed_format(precision, weight_OI.shape[1])
    packed_OB = round_matrix(weight_OI, format, how="plain")
    assert packed_OB.shape == (len(weight_OI), format.row_bytes(weight_OI.shape[1]))
    tensors = tensors_of_matrix(NAME, packed_OB, format).values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == format.matrix_bytes(*weight_OI.shape)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("precision", COMPRESSED)
def test_every_way_packs_what_the_package_reads(precision: str, how: How) -> None:
    weight_OI, moments_II = drawn(0, inputs=192)
    format = compressed_format(precision, 192)
    packed_OB = round_matrix(weight_OI, format, moments_II, how)
    assert torch.equal(unpacked(packed_OB, format), read_by_package(packed_OB, format))
    assert (format.split(packed_OB)[1] >= 0).all()


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(HOWS), st.sampled_from(COMPRESSED), st.sampled_from([96, 128, 192]))
def test_no_row_is_worse_than_plain_rounding(seed: int, how: How, precision: str, inputs: int) -> None:
    weight_OI, moments_II = drawn(seed, inputs=inputs)
    format = compressed_format(precision, inputs)
    plain, found = (round_matrix(weight_OI, format, moments_II, way) for way in ("plain", how))
    errors, plain_errors = (_errors_O(weight_OI, packed, format, moments_II) for packed in (found, plain))
    assert (errors <= plain_errors * (1 + 1e-5)).all()


def _errors_O(weight_OI: Tensor, packed_OB: Tensor, format: CompressedFormat, moments_II: Tensor) -> Tensor:
    return errors_O(weight_OI, packed_OB, format, moments_II)


def test_feedback_and_refitting_pay_in_int4() -> None:
    weight_OI, moments_II = drawn(1, outputs=64, inputs=256)
    format = compressed_format("int4", 256)
    found = [_errors_O(weight_OI, round_matrix(weight_OI, format, moments_II, how), format, moments_II).sum()
             for how in HOWS]  # fmt: skip
    plain, diagonal, fed, refitted = found
    assert refitted < fed < diagonal < plain
    assert fed < 0.7 * plain


@pytest.mark.parametrize("precision", COMPRESSED)
def test_feedback_is_gptq(precision: str) -> None:
    """Against GPTQ as its paper writes it, in the order of whole groups."""
    weight_OI, moments_II = drawn(3, outputs=6, inputs=128)
    format = CompressedFormat(precision, 128 if precision == "fp8" else 64)
    known = InputMoments(moments_II)
    rounded = feedback(weight_OI.T.contiguous(), known, format)
    damped_II = moments_II / moments_II.diagonal().mean() + DAMPING * torch.eye(128)
    moved_IO, inverse_II = weight_OI.T.double(), damped_II.inverse()
    wrong = 0
    for i in known.order_I(format.numbers).tolist():
        scale_O = rounded.scales_NO[i // format.numbers]
        wrong += int((format.nearest((moved_IO[i] / scale_O).float()) != rounded.levels_IO[i]).sum())
        error_O = (moved_IO[i] - rounded.levels_IO[i] * scale_O) / inverse_II[i, i]
        moved_IO -= inverse_II[:, i, None] * error_O
        inverse_II = inverse_II - inverse_II[:, i, None] * inverse_II[i] / inverse_II[i, i]
    assert wrong <= 2, "a number on the edge of two levels may fall to either, in float32"


@pytest.mark.parametrize("precision", COMPRESSED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_an_error_with_a_place(precision: str, bad: float) -> None:
    weight_OI = torch.randn(5, 128)
    weight_OI[3, 40] = bad
    with pytest.raises(NotFiniteError, match=r"L1\.ffn.*row 3, block 1"):
        round_matrix(weight_OI, compressed_format(precision, 128), how="plain", name="L1.ffn")


def test_a_row_without_whole_groups_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="128, 64, 32, and rows have 40"):
        compressed_format("int4", 40)
    assert [compressed_format("int4", inputs).numbers for inputs in (256, 576, 96)] == [128, 64, 32]
    assert compressed_format("fp8", 40).numbers == 40
