"""Products of groups of tokens with their experts' weights, in bf16, over offsets that only the device knows.

The grid is a bound that holds for any offsets; a program finds its group, and its place in it, by walking over them.
"""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.decode import load_values
from spectral_compile.lowering.triton.epilogue import finished, store


@triton.jit(do_not_specialize=["m", "n", "k", "experts"])
def grouped_kernel(
    a_codes, a_scales, b_codes, b_scales, out, offsets, m, n, k, experts, a_codes_row, a_scales_row, b_codes_row,
    b_scales_row, b_codes_expert, b_scales_expert, a_scale, b_scale, left, right, right_expert,
    B_K_LAST: tl.constexpr, A_BLOCK: tl.constexpr, B_BLOCK: tl.constexpr, A_TILE_ROWS: tl.constexpr,
    B_TILE_ROWS: tl.constexpr, RANK: tl.constexpr, HAS_LEFT: tl.constexpr, WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr, OPERANDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [m, n] of `spectral::scaled_grouped_mm` with groups along m: tiles begin where a group does. What
    follows the last group is one more, of nobody, and gets zeros. RANK: 1 where a row a expert, `right`, is added.
    """
    tile, end = tl.program_id(0), tl.load(offsets)
    expert, start = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    tiles = tl.cdiv(end, BLOCK_M)
    while (tile >= tiles) & (expert < experts):
        tile -= tiles
        expert += 1
        start = end
        end = tl.where(expert < experts, tl.load(offsets + expert, mask=expert < experts, other=0), m)
        tiles = tl.cdiv(end - start, BLOCK_M)
    row, col = start + tile * BLOCK_M, tl.program_id(1) * BLOCK_N
    if row < end:
        sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
        if expert < experts:
            b_codes += expert.to(tl.int64) * b_codes_expert
            b_scales += expert.to(tl.int64) * b_scales_expert
            for k_start in range(0, k, BLOCK_K):
                a = load_values(a_codes, a_scales, row, k_start, end, k, a_codes_row, a_scales_row,
                                BLOCK_M, BLOCK_K, A_BLOCK, A_TILE_ROWS, WHOLE_K, True)  # fmt: skip
                if B_K_LAST:
                    b = load_values(b_codes, b_scales, col, k_start, n, k, b_codes_row, b_scales_row,
                                    BLOCK_N, BLOCK_K, B_BLOCK, B_TILE_ROWS, WHOLE_K, True)  # fmt: skip
                    b = tl.trans(b)
                else:
                    b = load_values(b_codes, b_scales, k_start, col, k, n, b_codes_row, b_scales_row,
                                    BLOCK_K, BLOCK_N, B_BLOCK, B_TILE_ROWS, WHOLE_N, False)  # fmt: skip
                sums = tl.dot(a.to(OPERANDS), b.to(OPERANDS), sums)
            sums = finished(sums, row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N), end, n, a_scale + expert,
                            b_scale + expert, left, right + expert.to(tl.int64) * right_expert, 1, n, RANK,
                            HAS_LEFT)  # fmt: skip
        store(out, sums, row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N), end, n)


@triton.jit(do_not_specialize=["m", "n"])
def ragged_k_kernel(
    a_codes, a_scales, b_codes, b_scales, out, offsets, m, n, a_codes_row, a_scales_row, b_codes_row, b_scales_row,
    a_scale, b_scale, left, right, A_BLOCK: tl.constexpr, B_BLOCK: tl.constexpr, A_TILE_ROWS: tl.constexpr,
    B_TILE_ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, OPERANDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [experts, m, n] of `spectral::scaled_grouped_mm`, whose k is ragged: an expert for each program of axis 2.

    left [experts, m, RANK] and right [experts, RANK, n] are contiguous. WHOLE: each group is read up to a multiple of
    it.
    """
    expert = tl.program_id(2)
    end, start, first = tl.load(offsets), tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for i in range(expert):
        first += tl.cdiv(end - start, BLOCK) * BLOCK
        start, end = end, tl.load(offsets + i + 1)
    first = tl.multiple_of(first, BLOCK)
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    # The group as a matrix of its own: it begins with a block.
    a_codes, a_scales = a_codes + first // 2, a_scales + first // A_BLOCK
    b_codes, b_scales = b_codes + first // 2, b_scales + first // B_BLOCK
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    k = tl.cdiv(end - start, WHOLE) * WHOLE
    for k_start in range(0, k, BLOCK_K):
        a = load_values(a_codes, a_scales, row, k_start, m, k, a_codes_row, a_scales_row,
                        BLOCK_M, BLOCK_K, A_BLOCK, A_TILE_ROWS, False, True)  # fmt: skip
        b = load_values(b_codes, b_scales, col, k_start, n, k, b_codes_row, b_scales_row,
                        BLOCK_N, BLOCK_K, B_BLOCK, B_TILE_ROWS, False, True)  # fmt: skip
        sums = tl.dot(a.to(OPERANDS), tl.trans(b).to(OPERANDS), sums)
    if end > start:  # the tensor scales of an expert without tokens are nothing's
        wide = expert.to(tl.int64)
        m_index, n_index = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        sums = finished(sums, m_index, n_index, m, n, a_scale + expert, b_scale + expert, left + wide * m * RANK,
                        right + wide * n * RANK, RANK, n, RANK, True)  # fmt: skip
    out += expert.to(tl.int64) * m * n
    store(out, sums, row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N), m, n)
