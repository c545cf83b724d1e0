"""spectral::dequantize and scaled_mm on the CPU: values exact, products to the rounding of their sums."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.formats.nvfp4 import Quantized, block_values, tensor_scale
from spectral_compile.lowering.cpu import build, kernels
from spectral_compile.ops.dequantize import dequantize as dequantize_reference
from spectral_compile.ops.scaled_mm import scaled_mm as scaled_mm_reference

pytestmark = pytest.mark.usefixtures("library")

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}  # relative, to nearest
SIZES = (0, 1, 15, 16, 17, 33, 70, 257, 300)


def quantized(rows: int, cols: int, tile_rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes and scales for [rows, cols], every byte of a scale that is finite and not negative."""
    generator = torch.Generator().manual_seed(seed)
    blocks, tiles = -(-cols // 16), -(-rows // tile_rows)
    codes = torch.randint(256, (rows, blocks * 8), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0x7F, (tiles, blocks), generator=generator, dtype=torch.uint8)
    return codes, scales.view(torch.float8_e4m3fn), torch.tensor(3.7)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from([1, 16]), st.integers(0, 9))
def test_dequantize_is_the_references(rows: int, cols: int, tile_rows: int, seed: int) -> None:
    codes, scales, amax = quantized(rows, cols, tile_rows, seed)
    arguments = (codes, scales, amax, "nvfp4", rows, cols)
    assert torch.equal(torch.ops.spectral.dequantize(*arguments), dequantize_reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_code_with_every_scale_is_exact(dtype: torch.dtype) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    codes = every_byte.repeat(256, 1)
    scales = every_byte.repeat_interleave(32).view(256, 32).view(torch.float8_e4m3fn)
    got = kernels._values(build.library(), codes, scales, 256, 512, 1.0, dtype)
    expected = block_values(Quantized(codes, scales, torch.tensor(1.0)), 256, 512)
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0, equal_nan=True)
    finite = expected.isfinite()
    assert torch.equal(torch.signbit(got)[finite], torch.signbit(expected)[finite])


def test_dequantize_reads_any_strides() -> None:
    codes, scales, amax = quantized(40, 64)
    strided = codes.t().contiguous().t()
    assert not strided.is_contiguous()
    got = torch.ops.spectral.dequantize(strided, scales.t().contiguous().t(), amax, "nvfp4", 40, 64)
    assert torch.equal(got, dequantize_reference(codes, scales, amax, "nvfp4", 40, 64))


@st.composite
def products(draw: st.DrawFn) -> tuple:
    m, n, k = (draw(st.sampled_from(SIZES)) for _ in range(3))
    a_k_last, b_k_last = draw(st.booleans()), draw(st.booleans())
    a = quantized(*((m, k) if a_k_last else (k, m)), draw(st.sampled_from([1, 16])), draw(st.integers(0, 9)))
    b = quantized(*((n, k) if b_k_last else (k, n)), draw(st.sampled_from([1, 16])), draw(st.integers(0, 9)))
    left = draw(st.sampled_from([None, torch.ones(m), torch.linspace(-1, 2, m)]))
    right = draw(st.sampled_from([None, torch.linspace(-3e3, 2e3, n)]))
    carrier = draw(st.sampled_from(["bf16", "fp32"]))
    out_dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    return (*a, *b, left, right, m, n, k, a_k_last, b_k_last, "nvfp4", carrier, out_dtype)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(products())
def test_products_are_right_to_the_rounding_of_their_sums(arguments: tuple) -> None:
    left, right, m, n, k, a_k_last, b_k_last, _, carrier, out_dtype = arguments[6:]
    a, b = Quantized(*arguments[:3]), Quantized(*arguments[3:6])
    factor = (tensor_scale(a.amax) * tensor_scale(b.amax)).double()
    a = block_values(a, m, k).double() if a_k_last else block_values(a, k, m).double().t()
    b = block_values(b, n, k).double().t() if b_k_last else block_values(b, k, n).double()
    product = a @ b * factor
    left = torch.ones(m) if left is None else left
    rank_one = left[:, None] * (torch.zeros(n) if right is None else right)
    exact = product + rank_one

    got = torch.ops.spectral.scaled_mm(*arguments)
    assert got.shape == (m, n)
    assert got.dtype == out_dtype
    assert got.is_contiguous()
    # fp32 sums of k terms, and a few fp32 roundings after them
    bound = 2.0**-24 * ((k + 4) * (a.abs() @ b.abs() * factor) + 4 * rank_one.abs())
    if carrier == "bf16" and out_dtype == torch.bfloat16:
        bound += ROUNDING[torch.bfloat16] * (product.abs() + bound)  # torch's product is in bf16
    bound += ROUNDING[out_dtype] * (exact.abs() + bound) + (6e-8 if out_dtype == torch.float16 else 1e-38)
    finite = exact.abs() < torch.finfo(out_dtype).max
    assert bool(((got.double() - exact).abs() <= bound)[finite].all())
    reference = scaled_mm_reference(*arguments).double()
    assert bool(((reference - exact).abs() <= bound)[finite].all()), "the bound itself is wrong"


def test_a_wide_result_of_bf16_products_keeps_its_bits() -> None:
    operand = quantized(64, 512)
    arguments = (*operand, *operand, None, None, 64, 64, 512, True, True, "nvfp4", "bf16", torch.float32)
    got = torch.ops.spectral.scaled_mm(*arguments)
    assert not torch.equal(got, got.bfloat16().float())
    torch.testing.assert_close(got, scaled_mm_reference(*arguments), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("carrier", ["bf16", "fp32"])
def test_a_poisoned_operand_makes_the_product_nan(carrier: str) -> None:
    codes, scales, amax = quantized(8, 32)
    poisoned, operand = (codes, scales, amax * float("nan")), (codes, scales, amax)
    product = torch.ops.spectral.scaled_mm(
        *(*poisoned, *operand, None, torch.ones(8), 8, 8, 32, True, True, "nvfp4", carrier, torch.bfloat16)
    )
    assert product.isnan().all()


def test_identity_is_the_references() -> None:
    a, b, none, one = torch.randn(9, 20), torch.randn(7, 20), torch.empty(0), torch.ones(())
    arguments = (a, none, one, b, none, one, None, torch.randn(7), 9, 7, 20, True, True, "identity", "fp32")
    got = torch.ops.spectral.scaled_mm(*arguments, torch.float32)
    assert torch.equal(got, scaled_mm_reference(*arguments, torch.float32))


def test_tensor_scales_whose_product_underflows_still_scale_the_product():
    """1e-20 and 1e-19 in each element: 4096 of their products are 4e-36, an fp32 number; 1e-39 / 2688^2 is none."""
    a, b = torch.full((16, 4096), 1e-20), torch.full((16, 4096), 1e-19)
    operands = [torch.ops.spectral.quantize(x, None, None, None, "nvfp4", 1, 1, 0) for x in (a, b)]
    sizes = (16, 16, 4096, True, True, "nvfp4", "fp32", torch.float32)
    product = torch.ops.spectral.scaled_mm(*operands[0], *operands[1], None, None, *sizes)
    exact = (a.double() @ b.double().t()).float()
    assert torch.allclose(product, exact, rtol=1e-3, atol=0)
