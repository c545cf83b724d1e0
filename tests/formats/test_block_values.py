"""Codes times block scales: exact in bf16, for every code with every scale byte."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import FORMATS, Quantized, e2m1, quantize
from spectral_compile.formats.quantized import block_values
from tests.formats.inputs import QUANTISERS, matrices
from tests.scalar.floats import E2M1, E4M3, E8M0


def every_product(format: str) -> Tensor:
    """[256 scale bytes, 16 codes]."""
    kind = FORMATS[format]
    scales = torch.arange(256, dtype=torch.uint8).view(kind.scale_dtype)[:, None]
    codes = e2m1.pack(torch.arange(16, dtype=torch.uint8).repeat(kind.block // 16)).expand(256, -1)
    values = block_values(Quantized(codes, scales, torch.tensor(1.0)), format)
    assert values.dtype == torch.float32
    assert torch.equal(values[:, :16].nan_to_num(9), values[:, -16:].nan_to_num(9))
    return values[:, :16]


def test_every_e2m1_code_with_every_e4m3_byte() -> None:
    values = every_product("nvfp4")
    magnitudes = [[float(m * s) for m in E2M1] for s in E4M3]
    assert values[:127, :8].tolist() == magnitudes
    assert torch.equal(values[:127, 8:], -values[:127, :8])
    negative = [[-v for v in row] for row in magnitudes]
    assert values[128:255, :8].tolist() == negative  # never produced
    assert values[[127, 255]].isnan().all()
    assert torch.equal(values.bfloat16().float().nan_to_num(), values.nan_to_num())


def test_every_e2m1_code_with_every_e8m0_byte() -> None:
    """Exact, from 0.5 * 2**-127, a subnormal, up to 3 * 2**126 and 1.5 * 2**127; what lies beyond is Inf, and no finite
    number has the byte 254.
    """
    values = every_product("mxfp4")
    assert values[255].isnan().all()
    for byte in range(255):
        exact = [m * E8M0[byte] for m in E2M1]
        expected = [float(v) if v < 2**128 else float("inf") for v in exact]
        assert values[byte, :8].tolist() == expected
        assert values[byte, 8:].tolist() == [-v for v in expected]
    assert values[:, :8].isinf().nonzero().tolist() == [[253, 6], [253, 7], [254, 4], [254, 5], [254, 6], [254, 7]]
    assert torch.equal(values.bfloat16().float().nan_to_num(9), values.nan_to_num(9))


@pytest.mark.parametrize("format", FORMATS)
def test_products_of_finite_scales_keep_the_sign_of_zero(format: str) -> None:
    zeros = every_product(format)[:127, [0, 8]]
    assert (zeros == 0).all()
    assert zeros.signbit().tolist() == [[False, True]] * 127


@given(matrices(), st.sampled_from(QUANTISERS))
def test_any_quantised_matrix_is_exact_in_bf16_less_its_tensor_scale(
    x: Tensor, quantiser: tuple[str, str, int]
) -> None:
    format, rule, tile_rows = quantiser
    values = block_values(quantize(x, format, scale=rule, tile_rows=tile_rows), format)
    assert torch.equal(values.to(torch.bfloat16).to(torch.float32), values)


def test_only_nvfp4_has_a_tensor_scale() -> None:
    x = torch.full((4, 32), 2 * 2688.0)
    assert [quantize(x, format).tensor_scale.item() for format in ("nvfp4", "mxfp4")] == [2, 1]
