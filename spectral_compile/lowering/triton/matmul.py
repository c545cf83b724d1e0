"""The carrier "bf16": codes and scales become bf16 values in registers, exactly, and tensor cores sum in fp32."""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.decode import load_values
from spectral_compile.lowering.triton.epilogue import finished, store, tile_of


@triton.jit(do_not_specialize=["m", "n", "k"])
def bf16_kernel(
    a_codes, a_scales, b_codes, b_scales, out, m, n, k, a_codes_row, a_scales_row, b_codes_row, b_scales_row,
    a_scale, b_scale, left, right, left_row, right_row,
    A_K_LAST: tl.constexpr, B_K_LAST: tl.constexpr, A_BLOCK: tl.constexpr, B_BLOCK: tl.constexpr,
    A_TILE_ROWS: tl.constexpr, B_TILE_ROWS: tl.constexpr, RANK: tl.constexpr, HAS_LEFT: tl.constexpr,
    WHOLE_M: tl.constexpr, WHOLE_N: tl.constexpr, WHOLE_K: tl.constexpr, OPERANDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out [m, n] of `spectral::scaled_mm`, whose operands lie [m, k] and [n, k], or transposed where not K_LAST.

    WHOLE_M, WHOLE_N, WHOLE_K: the extent is a multiple of the tile's. OPERANDS: bf16, but for Triton's interpreter,
    which multiplies none.
    """
    row, col = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    row, col = row * BLOCK_M, col * BLOCK_N
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for k_start in range(0, k, BLOCK_K):
        if A_K_LAST:
            a = load_values(a_codes, a_scales, row, k_start, m, k, a_codes_row, a_scales_row,
                            BLOCK_M, BLOCK_K, A_BLOCK, A_TILE_ROWS, WHOLE_K, True)  # fmt: skip
        else:
            a = load_values(a_codes, a_scales, k_start, row, k, m, a_codes_row, a_scales_row,
                            BLOCK_K, BLOCK_M, A_BLOCK, A_TILE_ROWS, WHOLE_M, False)  # fmt: skip
            a = tl.trans(a)
        if B_K_LAST:
            b = load_values(b_codes, b_scales, col, k_start, n, k, b_codes_row, b_scales_row,
                            BLOCK_N, BLOCK_K, B_BLOCK, B_TILE_ROWS, WHOLE_K, True)  # fmt: skip
            b = tl.trans(b)
        else:
            b = load_values(b_codes, b_scales, k_start, col, k, n, b_codes_row, b_scales_row,
                            BLOCK_K, BLOCK_N, B_BLOCK, B_TILE_ROWS, WHOLE_N, False)  # fmt: skip
        sums = tl.dot(a.to(OPERANDS), b.to(OPERANDS), sums)
    m_index, n_index = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    sums = finished(sums, m_index, n_index, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK, HAS_LEFT)
    store(out, sums, m_index, n_index, m, n)


@triton.jit(do_not_specialize=["rows", "cols"])
def carry_kernel(
    codes, scales, values, rows, cols, codes_row, scales_row, BLOCK: tl.constexpr, TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """values [rows, cols] in bf16 or fp32, contiguous: what the kernel above makes in registers, for products that
    cuBLAS computes.
    """
    row, col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    tile = load_values(codes, scales, row, col, rows, cols, codes_row, scales_row, ROWS, COLS, BLOCK, TILE_ROWS,
                       False, False)  # fmt: skip
    store(values, tile, row + tl.arange(0, ROWS), col + tl.arange(0, COLS), rows, cols)
