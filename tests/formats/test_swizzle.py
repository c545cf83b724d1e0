"""The order of scales in block-scaled GEMMs, against cuBLAS's index formula, byte by byte."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.formats import quantize
from spectral_compile.formats.swizzle import swizzle, unswizzle
from tests.fake_kernels import equal_bits

SHAPES = st.tuples(st.integers(0, 300), st.integers(0, 20))
DTYPES = [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint8]


def offset(row: int, block: int, blocks: int) -> int:
    """Of the scale of a row and a block, in bytes (cuBLAS, "1D block scaling factors layout")."""
    tile = row // 128 * -(-blocks // 4) + block // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4


def test_the_first_tile_by_hand() -> None:
    x = torch.arange(512, dtype=torch.int16).view(128, 4).to(torch.uint8)
    got = swizzle(x)
    assert got[:16].tolist() == [0, 1, 2, 3, 128, 129, 130, 131, 0, 1, 2, 3, 128, 129, 130, 131]  # rows 0, 32, 64, 96
    assert got[16:20].tolist() == [4, 5, 6, 7]  # row 1


@given(SHAPES)
def test_every_scale_lies_where_the_published_formula_says_and_the_rest_is_zero(shape: tuple[int, int]) -> None:
    rows, blocks = shape
    x = torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = bytearray(-(-rows // 128) * 128 * -(-blocks // 4) * 4)
    for row, values in enumerate(x.tolist()):
        for block, value in enumerate(values):
            expected[offset(row, block, blocks)] = value
    got = swizzle(x)
    assert got.is_contiguous()
    assert bytes(got.tolist()) == bytes(expected)


@given(SHAPES, st.sampled_from(DTYPES))
def test_unswizzle_inverts_swizzle_for_every_byte(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).view(dtype)
    swizzled = swizzle(x)
    assert swizzled.dtype == dtype
    assert swizzled.dim() == 1
    back = unswizzle(swizzled, *shape)
    assert back.is_contiguous()
    assert equal_bits(back, x)


@given(SHAPES, st.sampled_from(DTYPES))
def test_scales_in_any_memory_layout(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    transposed = x.t().contiguous().t()
    strided = torch.zeros(2 * shape[0], 3 * shape[1], dtype=torch.uint8)[::2, ::3].copy_(x)
    for other in (transposed, strided):
        assert equal_bits(swizzle(other.view(dtype)), swizzle(x.view(dtype)))
    doubled = swizzle(x).repeat_interleave(2)[::2]
    assert equal_bits(unswizzle(doubled.view(dtype), *shape), x.view(dtype))


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (128, 5), (129, 4), (0, 4)])
@pytest.mark.parametrize("off", [-512, -1, 1, 512])
def test_a_wrong_number_of_scales_is_refused(rows: int, blocks: int, off: int) -> None:
    size = swizzle(torch.zeros(rows, blocks, dtype=torch.uint8)).numel()
    if size + off >= 0:
        with pytest.raises(ValueError, match=rf"\[{rows}, {blocks}\] are {size} bytes, not {size + off}"):
            unswizzle(torch.zeros(size + off, dtype=torch.uint8), rows, blocks)


def test_scales_of_a_quantised_matrix() -> None:
    q = quantize(torch.randn(200, 100), "mxfp4")
    assert equal_bits(unswizzle(swizzle(q.scales), 200, 4), q.scales)


@pytest.mark.parametrize("scales", [torch.zeros(128, 4), torch.zeros(2, 3, 4, dtype=torch.uint8)], ids=["wide", "3-D"])
def test_what_is_no_matrix_of_bytes_is_refused(scales: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scales are a matrix of bytes, not"):
        swizzle(scales)
