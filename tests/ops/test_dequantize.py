"""spectral::dequantize: what codes and scales stand for."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile import formats
from spectral_compile.formats import FORMATS, Quantized
from spectral_compile.ops.dequantize import carried, dequantize
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes, equal_bits
from tests.ops.operands import QUANTISERS, quantized, square

op = torch.ops.spectral.dequantize.default
# opcheck's schema test cannot take float8 inputs.
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SHAPES = [(33, 50), (16, 16), (1, 5), (7, 1), (0, 16), (3, 0)]
NARROW = pytest.mark.parametrize(("format", "scale", "tile_rows"), QUANTISERS[:-1])


@pytest.mark.parametrize("axis", [0, 1])
@NARROW
def test_what_quantize_stored_comes_back_contiguous_and_without_padding(
    axis: int, format: str, scale: str, tile_rows: int
) -> None:
    for shape in SHAPES:
        x = torch.randn(shape)
        stored = x if axis == 1 else x.t()
        q = quantized(x, format, scale, tile_rows, axis=axis)
        values = dequantize(*q, format, *stored.shape)
        assert values.is_contiguous()
        assert equal_bits(values, formats.dequantize(Quantized(*q), format, stored.shape[1]))
        assert values.shape == stored.shape
        torch.testing.assert_close(values, stored, rtol=0, atol=1)  # rounded, not garbage


@NARROW
def test_carried_values_are_dequantised_ones_less_the_tensor_scale(format: str, scale: str, tile_rows: int) -> None:
    q = quantized(torch.randn(33, 50), format, scale, tile_rows)
    codes, scales, tensor_scale = q
    values = carried(codes, scales, format, 50)
    assert (tensor_scale == 1) == (format == "mxfp4")
    assert equal_bits(values * tensor_scale, dequantize(*q, format, 33, 50))
    assert equal_bits(values.bfloat16().float(), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_identity_gives_fp32_copies_of_the_values_contiguous_in_any_layout(dtype: torch.dtype) -> None:
    for codes in (torch.randn(4, 6).to(dtype), torch.randn(6, 4).to(dtype).t()):
        values = dequantize(codes, codes.new_empty(0), torch.ones(()), "identity", 4, 6)
        assert equal_bits(values, codes.float())
        assert values.is_contiguous()
        assert values.data_ptr() != codes.data_ptr()


def test_an_unknown_format_is_refused() -> None:
    q = quantized(torch.randn(4, 16))
    with pytest.raises(ValueError, match="'nvfp8' is none; formats are nvfp4, mxfp4"):
        op(*q, "nvfp8", 4, 16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_the_fake_kernel_agrees(shape: tuple[int, int], format: str) -> None:
    for tile_rows in (1, square(format)):
        q = quantized(torch.randn(shape), format, tile_rows=tile_rows)
        assert_fake_agrees(op, *q, format, *shape)
        transposed = tuple(t.t().contiguous().t() if t.dim() == 2 else t for t in q[:1]) + q[1:]
        assert_fake_agrees(op, *transposed, format, *shape)
    codes = torch.randn(shape[::-1]).bfloat16().t()
    assert_fake_agrees(op, codes, codes.new_empty(0), torch.ones(()), "identity", *shape)


@pytest.mark.parametrize("format", FORMATS)
def test_one_trace_serves_all_sizes(format: str) -> None:
    def there_and_back(x: Tensor) -> Tensor:
        q = torch.ops.spectral.quantize(x, None, None, None, format, FORMATS[format].scales[0], 1, 1, False, 0)
        return op(*q, format, *x.shape)

    assert_one_trace_serves_all_sizes(there_and_back, (torch.randn(40, 70),), (torch.randn(35, 96),))


@pytest.mark.parametrize("format", FORMATS)
def test_opcheck(format: str) -> None:
    opcheck(op, (*quantized(torch.randn(20, 40), format), format, 20, 40), test_utils=OPCHECKS)


def test_opcheck_of_identity() -> None:
    codes = torch.randn(4, 6)
    opcheck(op, (codes, codes.new_empty(0), torch.ones(()), "identity", 4, 6))
