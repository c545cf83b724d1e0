"""What a product is finished with: tensor scales, the low-rank term that was split off, the output's type."""

import triton
import triton.language as tl


@triton.jit
def finished(
    product, m_index, n_index, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK: tl.constexpr,
    HAS_LEFT: tl.constexpr,
):  # fmt: skip
    """fp32 [M, N]: product * tensor scales + left [m, RANK] (outer) right [RANK, n], in the order of the rank.

    The scales are applied one by one: their product may underflow. Without left it is ones.
    """
    product = product * tl.load(a_scale) * tl.load(b_scale)
    for r in tl.static_range(RANK):
        across = tl.load(right + r * right_row + n_index, mask=n_index < n, other=0.0).to(tl.float32)[None, :]
        if HAS_LEFT:
            down = tl.load(left + m_index.to(tl.int64) * left_row + r, mask=m_index < m, other=0.0).to(tl.float32)
            product += down[:, None] * across
        else:
            product += across
    return product


@triton.jit
def store(out, product, m_index, n_index, m, n):
    """Write a tile of out [m, n], contiguous, in its own type."""
    pointers = out + m_index.to(tl.int64)[:, None] * n + n_index[None, :]
    mask = (m_index < m)[:, None] & (n_index < n)[None, :]
    tl.store(pointers, product.to(out.dtype.element_ty), mask=mask)


@triton.jit
def tile_of(program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which tile of [m, n] a program computes, as a row and a column of tiles.

    GROUP_M rows of tiles are walked through together, column by column: programs that run at the same time then read
    the same few rows and columns, out of the second-level cache.
    """
    down, across = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = program // (GROUP_M * across)
    height = min(down - group * GROUP_M, GROUP_M)
    inside = program % (GROUP_M * across)
    return group * GROUP_M + inside % height, inside // height


@triton.jit(do_not_specialize=["m", "n"])
def finish_kernel(
    product, out, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK: tl.constexpr, HAS_LEFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`finished` of a product [m, n] that lies in memory, contiguous; `out` may be the same memory."""
    m_index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_index = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    pointers = product + m_index.to(tl.int64)[:, None] * n + n_index[None, :]
    mask = (m_index < m)[:, None] & (n_index < n)[None, :]
    sums = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    sums = finished(
        sums, m_index, n_index, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK, HAS_LEFT
    )  # fmt: skip
    store(out, sums, m_index, n_index, m, n)
