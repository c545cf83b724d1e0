"""Building the CPU kernels: one C++ library, made by Inductor's toolchain once and kept in its cache."""

import ctypes
import hashlib
import platform
import re
from pathlib import Path

from spectral_compile._torch import CppCompileError, NoCppCompiler, load_shared_library

_HERE = Path(__file__).parent

# Inductor's own flags stand before these, so these win: a fused multiply-add changes codes.
_FLAGS = (
    *("-std=c++20", "-ffp-contract=off", "-fsigned-zeros"),
    *("-fno-unsafe-math-optimizations", "-fno-finite-math-only"),
    *("-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 on its own immintrin.h
)

_pointer, _long, _int, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

# data, bf16, rows, cols, row_stride, row_factor, col_factor
_MATRIX = (_pointer, _int, _long, _long, _long, _pointer, _pointer)

# kernels.cpp's C functions.
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "spectral_amax": (*_MATRIX, _pointer, _int),  # largest, threads
    "spectral_quantize": (
        *_MATRIX,
        *(_int, _int, _int, _int, _int),  # format, rule, along_rows, tile_rows, hadamard
        *(_pointer, ctypes.c_uint32),  # seed, stream
        *(_pointer, _pointer),  # codes, scales
        *(_pointer, _int, _long, _long),  # values, bf16_values, value_rows, value_cols
        *(_pointer, _pointer, _int),  # amax, tensor_scale, threads
    ),
    "spectral_dequantize": (
        *(_pointer, _pointer, _int, _long, _long),  # codes, scales, format, blocks, tile_rows
        *(_long, _long, _float, _pointer, _int, _int),  # rows, cols, factor, values, bf16, threads
    ),
    "spectral_column_mean": (
        *(_pointer, _int, _long, _long, _long),  # data, bf16, rows, cols, row_stride
        *(_long, _pointer, _pointer, _pointer),  # min_rows, mean, nonzero, total
        *(_pointer, _pointer, _pointer, _int),  # common, amax, common_amax, threads
    ),
    "spectral_finish_product": (
        *(_pointer, _int, _long, _long, _float, _float),  # product, bf16, m, n, scale_a, scale_b
        *(_pointer, _pointer, _long, _pointer, _int, _int),  # left, right, rank, out, bf16, threads
    ),
}

_OR = 'or pass options={"codegen": "eager"}'

_library: ctypes.CDLL | None = None


class NoCompilerError(RuntimeError):
    """No C++ compiler: the operators run as plain torch."""


def prepare() -> None:
    """Load the kernels, building them the first time (seconds; kept in Inductor's cache).

    Raises NoCompilerError where there is no C++ compiler; the operators then go on in plain torch, slowly.
    """
    global _library
    if _library is None:
        try:
            _library = declare(load_shared_library(_source(), _FLAGS))
        except NoCppCompiler:
            raise NoCompilerError(f"no C++ compiler found: install g++ (Debian: apt-get install g++), {_OR}") from None
        except CppCompileError as error:
            raise NoCompilerError(f"the C++ compiler is too old for the kernels: g++ 12 or clang, {_OR}") from error


def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None before `prepare()` or without a compiler. Never builds."""
    return _library


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the kernels' arguments."""
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int if name == "spectral_column_mean" else None
    return library


def _source() -> str:
    """One text: Inductor's cache key is its hash, and must change with every file and with the CPU."""
    return f"// for {_cpu_identity()}\n{_inline('kernels.cpp', set())}"


def _inline(name: str, seen: set[str]) -> str:
    """A file with its own headers in place of their #include lines, each once."""
    if name in seen:
        return ""
    seen.add(name)
    text = (_HERE / name).read_text().replace("#pragma once\n", "")
    return re.sub(r'^#include "(.+)"$', lambda match: _inline(match[1], seen), text, flags=re.MULTILINE)


def _cpu_identity() -> str:
    """What -march=native depends on: a cache directory may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {hashlib.sha256(features.encode()).hexdigest()[:16]}"
