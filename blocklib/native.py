"""The one operation torch lacks on a CPU: a weighted sum of picked rows that reads nothing else.

A few lines of C++ (`weighted_rows.cpp`), compiled at first use where there is a compiler, kept in the user's cache, and
called through ctypes: it takes a second to build, where torch's own extension machinery takes a minute and needs ninja.
It finds torch's OpenMP, so that both share one pool of threads.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("weighted_rows.cpp")
# Not -ffast-math: with it GCC before 13 links in a start-up that flushes denormal numbers to zero, process-wide.
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
_SYMBOLS = {torch.float32: "weighted_rows_float32", torch.bfloat16: "weighted_rows_bfloat16"}

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def status() -> str:
    """In one line, whether the operation is in use here, and if not, why."""
    _, why_not = _loaded()
    return f"native sparse rows: {'in use' if why_not is None else f'not in use, {why_not}'}"


@cache
def operation() -> Operation | None:
    """`weighted_rows` of `blocklib/ffn/rows.py`, for contiguous float32 and bfloat16 rows on the CPU.

    None where it cannot be built.
    """
    library, why_not = _loaded()
    if library is None:
        assert why_not is not None
        return None
    functions = {dtype: getattr(library, name) for dtype, name in _SYMBOLS.items()}
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for function in functions.values():
        function.argtypes = (pointer, number, pointer, pointer, number, pointer, ctypes.c_int)
        function.restype = None

    def weighted_rows(rows_NR: Tensor, index_K: Tensor, coefficients_K: Tensor) -> Tensor:
        width = rows_NR.shape[1]
        out_R = torch.empty(width, dtype=torch.float32, device="cpu")
        index_K, coefficients_K = index_K.contiguous(), coefficients_K.float().contiguous()
        functions[rows_NR.dtype](
            rows_NR.data_ptr(),
            width,
            index_K.data_ptr(),
            coefficients_K.data_ptr(),
            len(index_K),
            out_R.data_ptr(),
            torch.get_num_threads(),
        )
        return out_R.to(rows_NR.dtype)

    return weighted_rows


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    found = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    compiler = shlex.split(os.environ.get("CXX", "")) or found[:1]
    if not compiler:
        return None, "no C++ compiler is found (c++, g++, clang++ or $CXX)"
    try:
        _share_openmp()
        return ctypes.CDLL(str(_built(compiler))), None
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home folder is known.
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        why = next((line for line in said if "error" in line), said[-1])
        return None, f"{shlex.join(compiler)} cannot build it: {why}"


def _built(compiler: list[str]) -> Path:
    """The compiled library, made now where the cache has none for this source, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    made_of = [_SOURCE.read_text(encoding="utf-8"), version, " ".join(_FLAGS), _processor(), torch.__version__]
    key = hashlib.blake2b("\0".join(made_of).encode(), digest_size=8).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "puzzle-nas"
    path = folder / f"weighted_rows-{key}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as beside:
            made = Path(beside) / path.name
            command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(path)
    return path


def _processor() -> str:
    """The processor, on which -march=native depends."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {features}"


def _share_openmp() -> None:
    """Make torch's own OpenMP the one our library finds, also where its wheel carries it under another name."""
    for path in (Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*"):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
