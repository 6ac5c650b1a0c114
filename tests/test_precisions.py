"""Block formats against llama.cpp's own code, and the laws of rounding: what may never get worse does not."""

import ctypes

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from blocklib.errors import NotFiniteError, SettingError, UnsupportedFormatError
from blocklib.formats.gguf_types import PRECISIONS, _engine_library, stored_bytes
from blocklib.precisions.feedback import feedback
from blocklib.precisions.formats import FORMATS, BlockFormat
from blocklib.precisions.moments import DAMPING, InputMoments, MomentMeter
from blocklib.precisions.refit import move_levels, output_error_O, solve_scales
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import CASTS, CHUNK_ROWS, How, round_matrix, unpacked

BLOCKED = [type for type in PRECISIONS.values() if type not in CASTS]
K_QUANTS = [type for type in BLOCKED if type not in FORMATS]
HOWS: tuple[How, ...] = ("plain", "diagonal", "feedback", "refit")
seeds = st.integers(0, 2**32 - 1)


def label(value: object) -> str:
    return value.name.lower() if isinstance(value, Type) else str(value)


def by_engine(values: NDArray[np.float32], type: Type) -> NDArray[np.uint8]:
    """The rows as llama.cpp packs them."""
    rows, inputs = values.shape
    made = np.empty((rows, stored_bytes((inputs,), type)), dtype=np.uint8)
    _engine_library().ggml_quantize_chunk(int(type), values.ctypes.data, made.ctypes.data, 0, rows, inputs, None)
    return made


def read_by_engine(packed: NDArray[np.uint8], type: Type, inputs: int) -> NDArray[np.float32]:
    values = np.empty((len(packed), inputs), dtype=np.float32)
    read = getattr(_engine_library(), f"dequantize_row_{type.name.lower().replace('_k', '_K')}")
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    read(packed.ctypes.data, values.ctypes.data, values.size)
    return values


def drawn(seed: int, outputs: int = 24, inputs: int = 128, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Weights with a few outliers, and moments of inputs that lean on each other, some much louder than others."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 0.05
    weight_OI *= 1 + 4 * (torch.rand(outputs, inputs, generator=generator) < 0.02)
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    loud_I = torch.randn(inputs, generator=generator).exp()
    meter = MomentMeter()
    meter.add(torch.randn(tokens, inputs, generator=generator) @ mixing_II * loud_I)
    return weight_OI, meter.moments_II()


def errors_O(weight_OI: Tensor, packed_OB: Tensor, type: Type, moments_II: Tensor) -> Tensor:
    error_OI = (weight_OI - unpacked(packed_OB, type)).double()
    return ((error_OI @ moments_II.double()) * error_OI).sum(1)


BLOCKS_OF: dict[str, NDArray[np.float32]] = {
    "random": np.random.default_rng(0).standard_normal((400, 256)),
    "constant": np.random.default_rng(1).standard_normal((200, 1)).repeat(256, 1),
    "zero": np.zeros((2, 256)),
    "huge": np.random.default_rng(2).standard_normal((200, 256)) * 60_000,
    "small": np.random.default_rng(3).standard_normal((200, 256)) * 1e-7,
    "denormal": np.random.default_rng(4).standard_normal((200, 256)) * 1e-40,
    "steps": np.random.default_rng(5).integers(-8, 9, (200, 256)) * 0.5,
}


@pytest.mark.parametrize("blocks", BLOCKS_OF)
@pytest.mark.parametrize("type", PRECISIONS.values(), ids=label)
def test_plain_is_the_engine_bit_for_bit(type: Type, blocks: str) -> None:
    values = BLOCKS_OF[blocks].astype(np.float32)
    if blocks == "huge" and type in (Type.F16, Type.Q5_1, Type.Q4_1):
        values /= 10  # an f16 ends at 65504, and so does a minimum
    packed = by_engine(values, type)
    assert np.array_equal(round_matrix(torch.from_numpy(values), type, how="plain").numpy(), packed)
    if type not in CASTS:
        assert np.array_equal(unpacked(torch.from_numpy(packed), type).numpy(), read_by_engine(packed, type, 256))


@given(seed=seeds)
@settings(max_examples=20)
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_any_bytes_unpack_as_the_engine_reads_them_and_pack_again(format: BlockFormat, seed: int) -> None:
    random = np.random.default_rng(seed)
    packed = random.integers(0, 256, (6, 3, format.bytes), dtype=np.uint8)
    scalars = 4 if format.has_minimum else 2
    numbers = (random.standard_normal((6, 3, scalars // 2)) * 0.1).astype(np.float16)
    packed[..., :scalars] = numbers.view(np.uint8)
    packed = packed.reshape(6, -1)
    values = format.unpack(torch.from_numpy(packed)).numpy()
    assert np.array_equal(values, read_by_engine(packed, format.type, 96))
    assert np.array_equal(values, gguf.dequantize(packed, format.type))
    levels_RNB, scales_RN, minima_RN = format.unpack_parts(torch.from_numpy(packed))
    assert np.array_equal(format.pack(levels_RNB.flatten(1), scales_RN, minima_RN).numpy(), packed)


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_nearest_is_the_nearest_level(format: BlockFormat) -> None:
    numbers = torch.linspace(-300, 300, 20_001)
    levels = torch.tensor(format.levels, dtype=torch.float32)
    levels = levels[levels >= format.least]
    distance = (numbers[:, None] - levels).abs().amin(1)
    assert torch.equal((numbers - format.nearest(numbers)).abs(), distance)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("type", PRECISIONS.values(), ids=label)
def test_bytes_are_those_of_arithmetic(type: Type, how: How) -> None:
    weight_OI, moments_II = drawn(0, outputs=5, inputs=256)
    packed_OB = round_matrix(weight_OI, type, moments_II, how)
    assert packed_OB.dtype == torch.uint8
    assert packed_OB.shape == (5, stored_bytes((256,), type))
    assert unpacked(packed_OB, type).shape == (5, 256)


@given(seed=seeds)
@settings(max_examples=8)
@pytest.mark.parametrize("type", FORMATS, ids=label)
def test_each_way_is_better_than_the_one_before(type: Type, seed: int) -> None:
    """Each row for all over plain and for refit over feedback; on average for feedback over the diagonal."""
    weight_OI, moments_II = drawn(seed)
    known = InputMoments(moments_II)
    plain_O, diagonal_O, feedback_O, refit_O = (
        errors_O(weight_OI, round_matrix(weight_OI, type, known, how), type, moments_II) for how in HOWS
    )
    slack = 1 + 1e-4
    assert (diagonal_O <= plain_O * slack).all()
    assert (feedback_O <= plain_O * slack).all()
    assert (refit_O <= feedback_O * slack).all()
    assert diagonal_O.sum() < plain_O.sum()
    assert feedback_O.sum() < diagonal_O.sum()
    assert refit_O.sum() < 0.97 * feedback_O.sum()


@pytest.mark.parametrize("type", K_QUANTS, ids=label)
def test_k_quants_take_importance_whatever_the_way(type: Type) -> None:
    weight_OI, moments_II = drawn(1, inputs=512, tokens=2000)
    plain_OB, diagonal_OB, feedback_OB, refit_OB = (round_matrix(weight_OI, type, moments_II, how) for how in HOWS)
    assert torch.equal(diagonal_OB, feedback_OB)
    assert torch.equal(diagonal_OB, refit_OB)
    plain_O, diagonal_O = (errors_O(weight_OI, packed, type, moments_II) for packed in (plain_OB, diagonal_OB))
    assert (diagonal_O <= plain_O * (1 + 1e-4)).all()
    assert diagonal_O.sum() < plain_O.sum()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("type", FORMATS, ids=label)
def test_a_matrix_on_the_grid_stays(type: Type, how: How) -> None:
    weight_OI, moments_II = drawn(2)
    held_OI = unpacked(round_matrix(weight_OI, type, how="plain"), type)
    packed_OB = round_matrix(held_OI, type, moments_II, how)
    plain_OB = round_matrix(held_OI, type, how="plain")
    assert (errors_O(held_OI, packed_OB, type, moments_II) <= errors_O(held_OI, plain_OB, type, moments_II)).all()


@pytest.mark.parametrize("type", [Type.Q4_0, Type.Q4_1, Type.IQ4_NL], ids=label)
def test_feedback_is_gptq(type: Type) -> None:
    """Against GPTQ as its paper writes it: the inverse of the moments is made anew, by elimination, at each input."""
    weight_OI, moments_II = drawn(3, outputs=6, inputs=64)
    format, known = FORMATS[type], InputMoments(moments_II)
    rounded = feedback(weight_OI.T.contiguous(), known, format)
    damped_II = moments_II / moments_II.diagonal().mean() + DAMPING * torch.eye(64)
    moved_IO, inverse_II = weight_OI.T.double(), damped_II.inverse()
    assert sorted(known.order_I(32).tolist()) == list(range(64))
    for i in known.order_I(32).tolist():
        scale_O, minimum_O = rounded.scales_NO[i // 32], rounded.minima_NO[i // 32]
        level_O = format.nearest(((moved_IO[i] - minimum_O) / scale_O).float())
        assert torch.equal(level_O, rounded.levels_IO[i]), i
        error_O = (moved_IO[i] - level_O * scale_O - minimum_O) / inverse_II[i, i]
        moved_IO -= inverse_II[:, i, None] * error_O
        inverse_II = inverse_II - inverse_II[:, i, None] * inverse_II[i] / inverse_II[i, i]


@pytest.mark.parametrize("type", [Type.Q4_0, Type.Q5_1], ids=label)
def test_scales_are_those_of_least_squares(type: Type) -> None:
    weight_OI, moments_II = drawn(4, outputs=4)
    weight_IO, known, format = weight_OI.T.contiguous(), InputMoments(moments_II), FORMATS[type]
    rounded = Rounded.unpacked(format, round_matrix(weight_OI, type, how="plain"))
    solved = solve_scales(weight_IO, rounded, known)
    root_II = torch.linalg.cholesky(moments_II + DAMPING * moments_II.diagonal().mean() * torch.eye(128)).T
    for row, levels_I in enumerate(rounded.levels_IO.T.double()):
        made_IP = torch.block_diag(*levels_I.view(-1, 32, 1))
        if format.has_minimum:
            made_IP = torch.cat([made_IP, torch.block_diag(*torch.ones(4, 32, 1, dtype=torch.float64))], 1)
        best_P = torch.linalg.lstsq(root_II @ made_IP, root_II @ weight_IO[:, row].double()).solution
        assert torch.allclose(solved.rounded.scales_NO[:, row].double(), best_P[:4], rtol=2e-3)
    assert torch.allclose(solved.error_O, output_error_O(weight_IO, solved.rounded.values_IO(), known), rtol=1e-3)


def test_long_rows_are_solved_in_windows() -> None:
    weight_OI, moments_II = drawn(5, outputs=3, inputs=2048 + 96, tokens=3000)
    weight_IO, known = weight_OI.T.contiguous(), InputMoments(moments_II)
    rounded = Rounded.unpacked(FORMATS[Type.Q4_1], round_matrix(weight_OI, Type.Q4_1, how="plain"))
    solved = solve_scales(weight_IO, rounded, known)
    assert (solved.rounded.scales_NO != rounded.scales_NO).float().mean() > 0.9
    assert torch.allclose(solved.error_O, output_error_O(weight_IO, solved.rounded.values_IO(), known), rtol=1e-3)
    assert (solved.error_O < output_error_O(weight_IO, rounded.values_IO(), known)).all()


@pytest.mark.parametrize("type", FORMATS, ids=label)
def test_moving_levels_makes_no_row_worse(type: Type) -> None:
    weight_OI, moments_II = drawn(6)
    weight_IO, known = weight_OI.T.contiguous(), InputMoments(moments_II)
    errors = []
    rounded = Rounded.unpacked(FORMATS[type], round_matrix(weight_OI, type, how="plain"))
    for _ in range(3):
        error_IO = weight_IO - rounded.values_IO()
        errors.append(((known.damped_II @ error_IO) * error_IO).sum(0))
        rounded = move_levels(weight_IO, rounded, known)
    assert (errors[1] < errors[0]).all()
    assert (errors[2] <= errors[1] * (1 + 1e-5)).all()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("type", BLOCKED, ids=label)
def test_inputs_that_were_never_heard_do_no_harm(type: Type, how: How) -> None:
    """Fewer tokens than inputs, inputs that are always zero, and no input at all."""
    weight_OI, moments_II = drawn(7, inputs=256, tokens=20)
    moments_II[32:64] = 0
    moments_II[:, 32:64] = 0
    for known_II in (moments_II, torch.zeros_like(moments_II)):
        values_OI = unpacked(round_matrix(weight_OI, type, known_II, how), type)
        assert values_OI.isfinite().all()
        farthest = (weight_OI - unpacked(round_matrix(weight_OI, type, how="plain"), type)).abs().max()
        assert (weight_OI - values_OI).abs().max() < 10 * farthest


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("type", BLOCKED, ids=label)
def test_numbers_at_the_ends_of_float16(type: Type, how: How) -> None:
    weight_OI, moments_II = drawn(8, inputs=256)
    largest = 60_000 if type in FORMATS and FORMATS[type].has_minimum else 120_000
    for factor in (0.0, 1e-42, 1e-7, largest / weight_OI.abs().max()):
        assert unpacked(round_matrix(weight_OI * factor, type, moments_II, how), type).isfinite().all()


def test_rows_are_rounded_in_chunks_and_none_knows_of_another() -> None:
    weight_OI, moments_II = drawn(9, outputs=CHUNK_ROWS + 40, inputs=64)
    known = InputMoments(moments_II)
    whole_OB = round_matrix(weight_OI, Type.Q4_0, known)
    parts = [round_matrix(weight_OI[rows], Type.Q4_0, known) for rows in (slice(CHUNK_ROWS), slice(CHUNK_ROWS, None))]
    assert torch.equal(whole_OB, torch.cat(parts))


@given(seed=seeds)
@settings(max_examples=20)
def test_moments_are_the_mean_of_products(seed: int) -> None:
    inputs_BTI = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    meter = MomentMeter()
    for inputs_TI in inputs_BTI:
        meter.add(inputs_TI)
    flat_NI = inputs_BTI.view(-1, 7)
    assert torch.allclose(meter.moments_II().float(), (flat_NI[:, :, None] * flat_NI[:, None]).mean(0), atol=1e-6)
    assert meter.tokens == 15


def test_moments_without_inputs_are_refused() -> None:
    with pytest.raises(SettingError):
        MomentMeter().moments_II()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_weight_is_named_with_its_place(bad: float, how: How) -> None:
    weight_OI, moments_II = drawn(10)
    weight_OI[5, 70] = bad
    for type in (Type.Q4_0, Type.F16):
        with pytest.raises(NotFiniteError, match=r"layer 3's gate_proj.* row 5, block 2\b"):
            round_matrix(weight_OI, type, moments_II, how, "layer 3's gate_proj")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_moment_is_named_with_its_place(bad: float) -> None:
    weight_OI, moments_II = drawn(11)
    moments_II[33, 100] = bad
    with pytest.raises(NotFiniteError, match=r"moments.*gate_proj.* row 33, block 3\b"):
        round_matrix(weight_OI, Type.Q4_0, moments_II, "refit", "gate_proj")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("type", [*BLOCKED, Type.F16, Type.BF16], ids=label)
def test_a_weight_that_the_type_cannot_hold_is_named_with_its_place(type: Type, how: How) -> None:
    weight_OI, moments_II = drawn(12, outputs=CHUNK_ROWS + 3, inputs=256)
    weight_OI[CHUNK_ROWS + 1, 200] = torch.finfo(torch.float32).max
    place = r"block \d" if type in K_QUANTS else r"block 6\b"  # a K-quant's 256 numbers have one scale
    with pytest.raises(NotFiniteError, match=rf"gate_proj.* row {CHUNK_ROWS + 1}, {place}"):
        round_matrix(weight_OI, type, moments_II, how, "gate_proj")


def test_what_does_not_fit_together_is_refused() -> None:
    weight_OI, moments_II = drawn(13)
    with pytest.raises(ValueError, match="moments"):
        round_matrix(weight_OI, Type.Q4_0)
    with pytest.raises(SettingError, match="128 inputs"):
        round_matrix(weight_OI, Type.Q4_0, moments_II[:96, :96])
    with pytest.raises(UnsupportedFormatError, match="blocks of 256"):
        round_matrix(weight_OI, Type.Q6_K, moments_II)
