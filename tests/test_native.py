"""The native sum of picked rows: what it gives, with and without a compiler, and what it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blocklib import native
from blocklib.ffn.rows import RowLinear, weighted_rows


def reference(rows: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
    return (rows[index].double() * coefficients.double()[:, None]).sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [1, 17, 2048, 5000])
def test_weighted_rows_with_and_without_the_native_operation(
    dtype: torch.dtype, threads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, width, generator=generator).to(dtype)
    coefficients = torch.randn(61, generator=generator).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (0, 1, 9, 61):
            index = torch.randperm(100, generator=generator)[:count]
            expected = reference(rows, index, coefficients[:count])
            tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.2}
            found = weighted_rows(rows, index, coefficients[:count])
            torch.testing.assert_close(found.double(), expected, **tolerance)
            with monkeypatch.context() as without:
                without.setattr("blocklib.ffn.rows.native_operation", lambda: None)
                torch.testing.assert_close(
                    weighted_rows(rows, index, coefficients[:count]).double(), expected, **tolerance
                )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_not_a_number_counts_where_it_is_picked_and_only_there(
    dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("blocklib.ffn.rows.native_operation", lambda: None)
    rows = torch.ones(40, 33, dtype=dtype)
    rows[7], rows[8] = torch.nan, torch.inf
    picked = torch.tensor([index for index in range(40) if index not in (7, 8)])
    assert weighted_rows(rows, picked, torch.ones(38, dtype=dtype)).tolist() == [38] * 33
    assert weighted_rows(rows, torch.tensor([7, 1]), torch.ones(2, dtype=dtype)).isnan().all()
    assert weighted_rows(rows, torch.tensor([8, 1]), torch.ones(2, dtype=dtype)).isinf().all()
    assert weighted_rows(rows, torch.tensor([0, 1]), torch.tensor([torch.nan, 1], dtype=dtype)).isnan().all()


def test_a_row_linear_is_a_linear() -> None:
    module = RowLinear(6, 4, bias=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    x = torch.randn(3, 6)
    assert module.bias is not None
    torch.testing.assert_close(module(x), torch.nn.functional.linear(x, module.weight.T, module.bias))
    torch.testing.assert_close(module.picked(torch.arange(6), x[0]), module(x[0]))


# --- how it is built, in a process of its own with an empty cache -----------------------------------------------------

USE = """
import torch
from blocklib import native
from blocklib.ffn.rows import weighted_rows
print(native.status())
assert weighted_rows(torch.eye(3), torch.tensor([2]), torch.tensor([5.0])).tolist() == [0, 0, 5]
"""

needs_compiler = pytest.mark.skipif("not in use" in native.status(), reason=native.status())


def started(code: str, **environment: str) -> "subprocess.Popen[str]":
    """A Python process that runs `code`, some environment variables set."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/cc"])
def test_a_compiler_that_fails_is_said_and_done_without(compiler: str, tmp_path: Path) -> None:
    found = said(started(USE, CXX=compiler, XDG_CACHE_HOME=str(tmp_path)))
    assert found.startswith(f"native sparse rows: not in use, {compiler} cannot build it: ")


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "puzzle-nas").write_text("a file where the folder should be")
    found = said(started(USE, XDG_CACHE_HOME=str(tmp_path)))
    assert found.startswith("native sparse rows: not in use, ")


@needs_compiler
def test_several_processes_may_build_it_at_once(tmp_path: Path) -> None:
    processes = [started(USE, XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    assert [said(process) for process in processes] == ["native sparse rows: in use\n"] * 3
    (built,) = (tmp_path / "puzzle-nas").iterdir()
    assert built.suffix == ".so"


@needs_compiler
def test_loading_it_leaves_denormal_numbers_alone(tmp_path: Path) -> None:
    """A library linked with -ffast-math may flush them to zero, in the whole process."""
    code = USE + "assert (torch.full((64,), 1e-40) / 2).all() and float('1e-310') * float('0.5') > 0\n"
    assert "in use\n" in said(started(code, XDG_CACHE_HOME=str(tmp_path)))


def test_another_default_dtype_changes_nothing() -> None:
    rows, index, by = torch.randn(8, 64), torch.tensor([1, 5]), torch.tensor([2.0, -1.0])
    expected = weighted_rows(rows, index, by)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = weighted_rows(rows, index, by)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
