"""One product on each carrier: which kernels, over which grid."""

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton.configs import GROUPED, Config, choose
from spectral_compile.lowering.triton.epilogue import finish_kernel
from spectral_compile.lowering.triton.fp8 import convert_kernel, exponents_kernel, fp8_kernel
from spectral_compile.lowering.triton.grouped import grouped_kernel, ragged_k_kernel
from spectral_compile.lowering.triton.matmul import bf16_kernel, carry_kernel
from spectral_compile.lowering.triton.native import native_kernel, transpose_kernel
from spectral_compile.lowering.triton.operands import LowRank, Operand, epilogue_arguments

Shape = tuple[int, int, int]  # m, n, k


def multiply_bf16(a: Operand, b: Operand, term: LowRank, shape: Shape, out: Tensor) -> None:
    """The carrier "bf16"."""
    m, n, k = shape
    config = choose("bf16", capability(out), m, n)
    if config.how == "carry":
        return _multiply_carried(a, b, term, shape, out)
    bf16_kernel[grid(config, m, n)](
        *(a.codes, a.scales, b.codes, b.scales, out, m, n, k),
        *(a.codes.stride(0), a.scales.stride(0), b.codes.stride(0), b.scales.stride(0)),
        *epilogue_arguments(a, b, term),
        *(a.k_last, b.k_last, a.block, b.block, a.tile_rows, b.tile_rows, term.rank, term.left is not None),
        **config.whole(m, n, k),
        OPERANDS=tl.bfloat16 if out.is_cuda else tl.float32,
        **config.tile(),
        **config.launch(),
    )
    return None


def _multiply_carried(a: Operand, b: Operand, term: LowRank, shape: Shape, out: Tensor) -> None:
    """By cuBLAS, from values in memory. Its sums come in bf16 where the result does: one rounding more, relative to
    the product before the low-rank term; else in fp32.
    """
    m, n, k = shape
    a_values, b_values = (
        carried(x, *((size, k) if x.k_last else (k, size)), torch.bfloat16) for x, size in ((a, m), (b, n))
    )
    matrices = a_values if a.k_last else a_values.t(), b_values.t() if b.k_last else b_values
    if out.dtype == torch.bfloat16:
        product = torch.mm(*matrices, out=out)
    elif out.is_cuda:
        product = torch.mm(*matrices, out_dtype=torch.float32)
    else:  # the interpreter's
        product = torch.mm(*(matrix.float() for matrix in matrices))
    finish(product, a, b, term, out)


def finish(product: Tensor, a: Operand, b: Operand, term: LowRank, out: Tensor) -> None:
    """The epilogue alone."""
    m, n = out.shape
    finish_kernel[triton.cdiv(m, 32), triton.cdiv(n, 128)](
        *(product, out, m, n), *epilogue_arguments(a, b, term), term.rank, term.left is not None, 32, 128
    )


def carried(x: Operand, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """[rows, cols] in dtype: code * block scale."""
    values = x.codes.new_empty((rows, cols), dtype=dtype)
    if values.numel():
        strides = x.codes.stride(0), x.scales.stride(0)
        carry_kernel[triton.cdiv(rows, 32), triton.cdiv(cols, 128)](
            x.codes, x.scales, values, rows, cols, *strides, x.block, x.tile_rows, 32, 128
        )
    return values


def multiply_native(a: Operand, b: Operand, term: LowRank, shape: Shape, out: Tensor) -> None:
    """The carrier "native"."""
    m, n, k = shape
    a, b = _with_k_last(a, m, k), _with_k_last(b, n, k)
    config = choose("native", capability(out), m, n)
    native_kernel[grid(config, m, n)](
        *(a.codes, a.scales, b.codes, b.scales, out, m, n, k),
        *(a.codes.stride(0), a.scales.stride(0), b.codes.stride(0), b.scales.stride(0)),
        *epilogue_arguments(a, b, term),
        *(a.block, a.tile_rows, b.tile_rows, term.rank, term.left is not None, k % config.block_k == 0),
        **config.tile(),
        **config.launch(),
    )


def fits(carrier: str, a: Operand, b: Operand) -> bool:
    """Whether these operands can be multiplied so: the plan sees to it, other callers of the operator may not.

    "native": one format; and blocks along k, or square ones, which can be turned round. "fp8": MXFP4.
    """
    if carrier == "native":
        return a.block == b.block and all(x.k_last or x.tile_rows > 1 for x in (a, b))
    return carrier != "fp8" or a.block == b.block == FORMATS["mxfp4"].block


def _with_k_last(x: Operand, extent: int, k: int) -> Operand:
    """A matrix in square blocks that is stored [k, extent], as [extent, k]."""
    if x.k_last:
        return x
    blocks = triton.cdiv(k, x.block)
    codes = x.codes.new_empty((extent, blocks * x.block // 2))
    transpose_kernel[triton.cdiv(blocks * x.block, 64), triton.cdiv(extent, 64)](
        x.codes, codes, k, extent, x.codes.shape[1], x.codes.stride(0), codes.shape[1], 64, 64
    )
    return x._replace(codes=codes, scales=x.scales.t().contiguous(), k_last=True)


def multiply_fp8(a: Operand, b: Operand, term: LowRank, shape: Shape, out: Tensor) -> None:
    """The carrier "fp8", of MXFP4 operands."""
    m, n, k = shape
    config = choose("fp8", capability(out), m, n)
    a_values, a_tops = _in_e5m2(a, m, k, config.block_m, config.block_k)
    b_values, b_tops = _in_e5m2(b, n, k, config.block_n, config.block_k)
    fp8_kernel[grid(config, m, n)](
        *(a_values, b_values, a_tops, b_tops, out, m, n, a_values.shape[1]),
        *epilogue_arguments(a, b, term),
        *(term.rank, term.left is not None),
        **config.tile(),
        **config.launch(),
    )


def _in_e5m2(x: Operand, extent: int, k: int, whole: int, whole_k: int) -> tuple[Tensor, Tensor]:
    """E5M2 [extent, k], zeros up to multiples of `whole` and `whole_k`; and the scale bytes it is relative to."""
    padded = triton.cdiv(extent, whole) * whole, triton.cdiv(k, whole_k) * whole_k
    values = x.codes.new_empty(padded, dtype=torch.int8)
    tops = x.codes.new_empty(extent, dtype=torch.int32)
    scales_row = x.scales.stride(0)
    if x.k_last:
        along = (x.tile_rows, triton.cdiv(k, x.block), scales_row, 1)
    else:
        along = (x.block, triton.cdiv(k, x.tile_rows), 1, scales_row)
    per_scale, count, stride, k_stride = along
    exponents_kernel[(triton.cdiv(extent, 16),)](x.scales, tops, extent, count, stride, k_stride, per_scale, 16, 64)
    rows, cols = (extent, k) if x.k_last else (k, extent)
    over = padded if x.k_last else padded[::-1]
    convert_kernel[triton.cdiv(over[0], 32), triton.cdiv(over[1], 128)](
        *(x.codes, x.scales, tops, values, lost_blocks(values.device), rows, cols),
        *(x.codes.stride(0), scales_row, *padded, x.tile_rows, x.k_last, 32, 128),
    )
    return values.view(torch.float8_e5m2), tops


@functools.cache
def lost_blocks(device: torch.device) -> Tensor:
    """How many blocks were too small for the carrier "fp8" on a device so far, int64 [1]. Reading it waits."""
    return torch.zeros(1, dtype=torch.int64, device=device)


def multiply_grouped(
    a: Operand, stack: Operand, offsets: Tensor, term: tuple[Tensor | None, Tensor | None], shape: Shape, out: Tensor
) -> None:
    """Groups of rows of A, each with its matrix of a stack [experts, n, k], or [experts, k, n]; in bf16. term: what is
    added, left [m] or none for ones, and right [experts, n] or none for nothing.
    """
    m, n, k = shape
    experts = offsets.shape[0]
    config = GROUPED
    if experts == 0:
        out.zero_()
        return
    left, right = (None if x is None else x.contiguous() for x in term)
    tiles = triton.cdiv(m, config.block_m) + experts  # each group, and what is after the last, may end in a part of one
    grouped_kernel[tiles, triton.cdiv(n, config.block_n)](
        *(a.codes, a.scales, stack.codes, stack.scales, out, offsets, m, n, k, experts),
        *(a.codes.stride(0), a.scales.stride(0), stack.codes.stride(1), stack.scales.stride(1)),
        *(stack.codes.stride(0), stack.scales.stride(0), a.tensor_scale, stack.tensor_scale),
        *(offsets if left is None else left, offsets if right is None else right, 0 if right is None else n),
        *(stack.k_last, a.block, stack.block, a.tile_rows, stack.tile_rows, int(right is not None), left is not None),
        *(n % config.block_n == 0, k % config.block_k == 0, tl.bfloat16 if out.is_cuda else tl.float32),
        *(config.block_m, config.block_n, config.block_k),
        **config.launch(),
    )


def multiply_ragged_k(
    a: Operand,
    b: Operand,
    offsets: Tensor,
    term: tuple[Tensor | None, Tensor | None],
    block: int,
    whole: int,
    out: Tensor,
) -> None:
    """A product for each expert, over its tokens, whose groups begin at multiples of `block` and are read up to a
    multiple of `whole`; in bf16. term: what is added, left [experts, m] (outer) right [experts, n], or of rank r.
    """
    experts, m, n = out.shape
    config = GROUPED
    left, right = (None if x is None else x.contiguous() for x in term)
    rank = 0 if left is None else left.shape[2] if left.dim() == 3 else 1
    ragged_k_kernel[triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n), experts](
        *(a.codes, a.scales, b.codes, b.scales, out, offsets, m, n),
        *(a.codes.stride(0), a.scales.stride(0), b.codes.stride(0), b.scales.stride(0)),
        *(a.tensor_scale, b.tensor_scale, offsets if left is None else left, offsets if right is None else right),
        *(a.block, b.block, a.tile_rows, b.tile_rows, rank, block, whole),
        *(tl.bfloat16 if out.is_cuda else tl.float32, config.block_m, config.block_n, config.block_k),
        **config.launch(),
    )


def grid(config: Config, m: int, n: int) -> tuple[int]:
    """A program for each tile."""
    return (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)


def capability(x: Tensor) -> tuple[int, int]:
    """Of the GPU that holds a tensor; that of none for the interpreter."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)


Multiply = Callable[[Operand, Operand, LowRank, Shape, Tensor], None]
MULTIPLY: dict[str, Multiply] = {"bf16": multiply_bf16, "native": multiply_native, "fp8": multiply_fp8}
