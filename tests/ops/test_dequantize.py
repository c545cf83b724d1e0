"""spectral::dequantize: what codes and scales stand for."""

import pytest
import torch
from torch.library import opcheck

from spectral_compile.formats.nvfp4 import Quantized, dequantize_nvfp4, tensor_scale
from spectral_compile.ops.dequantize import carried, dequantize
from spectral_compile.ops.quantize import quantize
from tests.fake_kernels import assert_fake_agrees, equal_bits

op = torch.ops.spectral.dequantize.default
# opcheck's schema test cannot take float8 inputs.
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SHAPES = [(33, 50), (16, 16), (1, 5), (7, 1), (0, 16), (3, 0)]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_quantize_stored_comes_back_contiguous_and_without_padding(
    axis: int, tile_rows: int, shape: tuple[int, int]
) -> None:
    x = torch.randn(shape)
    stored = x if axis == 1 else x.t()
    q = quantize(x, None, None, None, "nvfp4", axis, tile_rows, 0)
    values = dequantize(*q, "nvfp4", *stored.shape)
    assert values.is_contiguous()
    assert equal_bits(values, dequantize_nvfp4(Quantized(*q), *stored.shape))
    assert values.shape == stored.shape
    torch.testing.assert_close(values, stored, rtol=0, atol=1)  # rounded, not garbage


def test_carried_values_are_dequantised_ones_less_the_tensor_scale() -> None:
    q = quantize(torch.randn(33, 50), None, None, None, "nvfp4", 1, 16, 0)
    values = carried(*q, "nvfp4", 33, 50)
    assert equal_bits(values * tensor_scale(q[2]), dequantize(*q, "nvfp4", 33, 50))
    assert equal_bits(values.bfloat16().float(), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_identity_gives_fp32_copies_of_the_values_contiguous_in_any_layout(dtype: torch.dtype) -> None:
    for codes in (torch.randn(4, 6).to(dtype), torch.randn(6, 4).to(dtype).t()):
        values = dequantize(codes, codes.new_empty(0), torch.ones(()), "identity", 4, 6)
        assert equal_bits(values, codes.float())
        assert values.is_contiguous()
        assert values.data_ptr() != codes.data_ptr()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_the_fake_kernel_agrees(shape: tuple[int, int], tile_rows: int) -> None:
    q = quantize(torch.randn(shape), None, None, None, "nvfp4", 1, tile_rows, 0)
    assert_fake_agrees(op, *q, "nvfp4", *shape)
    transposed = tuple(t.t().contiguous().t() if t.dim() == 2 else t for t in q[:1]) + q[1:]
    assert_fake_agrees(op, *transposed, "nvfp4", *shape)
    codes = torch.randn(shape[::-1]).bfloat16().t()
    assert_fake_agrees(op, codes, codes.new_empty(0), torch.ones(()), "identity", *shape)


def test_opcheck() -> None:
    q = quantize(torch.randn(20, 40), None, None, None, "nvfp4", 1, 1, 0)
    opcheck(op, (*q, "nvfp4", 20, 40), test_utils=OPCHECKS)
    codes = torch.randn(4, 6)
    opcheck(op, (codes, codes.new_empty(0), torch.ones(()), "identity", 4, 6))
