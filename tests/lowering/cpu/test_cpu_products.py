"""spectral::dequantize and scaled_mm on the CPU: values exact, products to the rounding of their sums."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.formats import FORMATS, Quantized
from spectral_compile.formats.quantized import block_values
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.dequantize import dequantize as dequantize_reference
from spectral_compile.ops.scaled_mm import scaled_mm as scaled_mm_reference

pytestmark = pytest.mark.usefixtures("library")

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}  # relative, to nearest
SIZES = (0, 1, 15, 16, 17, 33, 70, 257, 300)
OPERANDS = ("nvfp4", "mxfp4", "identity", "identity in bf16")
# Scale bytes that are finite and not negative; MXFP4's such that products stay within fp32.
SCALE_BYTES = {"nvfp4": (0, 0x7F), "mxfp4": (100, 150)}


def quantized(
    rows: int, cols: int, format: str = "nvfp4", square: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes and scales for [rows, cols], or an identity operand."""
    generator = torch.Generator().manual_seed(seed)
    if format.startswith("identity"):
        dtype = torch.bfloat16 if format.endswith("bf16") else torch.float32
        return torch.randn(rows, cols + 3, generator=generator).to(dtype), torch.empty(0), torch.ones(())
    kind = FORMATS[format]
    blocks, tiles = -(-cols // kind.block), -(-rows // (kind.block if square else 1))
    codes = torch.randint(256, (rows, blocks * kind.block // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(*SCALE_BYTES[format], (tiles, blocks), generator=generator, dtype=torch.uint8)
    return codes, scales.view(kind.scale_dtype), torch.tensor(3.7 if format == "nvfp4" else 1.0)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(*[st.sampled_from(SIZES)] * 2, st.sampled_from(list(FORMATS)), st.booleans(), st.integers(0, 9))
def test_dequantize_is_the_references(rows: int, cols: int, format: str, square: bool, seed: int) -> None:
    arguments = (*quantized(rows, cols, format, square, seed), format, rows, cols)
    assert torch.equal(torch.ops.spectral.dequantize(*arguments), dequantize_reference(*arguments))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_code_with_every_scale_is_exact(dtype: torch.dtype, format: str) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    cols = 512  # 32 or 16 blocks: every byte of codes in each row, a scale of its own a row
    codes = every_byte.repeat(256, 1)
    blocks = cols // FORMATS[format].block
    scales = every_byte.repeat_interleave(blocks).view(256, blocks).view(FORMATS[format].scale_dtype)
    got = torch.ops.spectral.carry(codes, scales, format, 256, cols, dtype)
    expected = block_values(Quantized(codes, scales, torch.tensor(1.0)), format)
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0, equal_nan=True)
    finite = expected.isfinite()
    assert torch.equal(torch.signbit(got)[finite], torch.signbit(expected)[finite])


@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_reads_any_strides(format: str) -> None:
    codes, scales, tensor_scale = quantized(40, 64, format)
    strided = codes.t().contiguous().t()
    assert not strided.is_contiguous()
    got = torch.ops.spectral.dequantize(strided, scales.t().contiguous().t(), tensor_scale, format, 40, 64)
    assert torch.equal(got, dequantize_reference(codes, scales, tensor_scale, format, 40, 64))


@st.composite
def products(draw: st.DrawFn) -> tuple:
    m, n, k = (draw(st.sampled_from(SIZES)) for _ in range(3))
    a_k_last, b_k_last = draw(st.booleans()), draw(st.booleans())
    a_format, b_format = draw(st.sampled_from(OPERANDS)), draw(st.sampled_from(OPERANDS))
    a = quantized(*((m, k) if a_k_last else (k, m)), a_format, draw(st.booleans()), draw(st.integers(0, 9)))
    b = quantized(*((n, k) if b_k_last else (k, n)), b_format, draw(st.booleans()), draw(st.integers(0, 9)))
    rank = draw(st.sampled_from([0, 1, "vectors", 3]))
    left = right = None
    if rank == "vectors":
        left = draw(st.sampled_from([None, torch.ones(m), torch.linspace(-1, 2, m)]))
        right = torch.linspace(-3e3, 2e3, n)
    elif rank:
        left, right = torch.linspace(-1, 2, m * rank).view(m, rank), torch.linspace(-3e3, 2e3, n * rank).view(rank, n)
    carrier = draw(st.sampled_from(["bf16", "fp32"]))
    out_dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    formats = (a_format.partition(" ")[0], b_format.partition(" ")[0])
    return (*a, *b, left, right, m, n, k, a_k_last, b_k_last, *formats, carrier, out_dtype)


def exact_operand(codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, k_last: bool, cols: int) -> Tensor:
    """[rows, k] or [cols, k] in fp64."""
    values = carried(codes, scales, format, cols).double() * tensor_scale.double()
    return values if k_last else values.t()


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(products())
def test_products_are_right_to_the_rounding_of_their_sums(arguments: tuple) -> None:
    left, right, m, n, k, a_k_last, b_k_last, a_format, b_format, carrier, out_dtype = arguments[6:]
    a = exact_operand(*arguments[:3], a_format, a_k_last, k if a_k_last else m)
    b = exact_operand(*arguments[3:6], b_format, b_k_last, k if b_k_last else n).t()
    product = a @ b
    low_rank = low_rank_abs = torch.zeros(m, n, dtype=torch.float64)
    if right is not None:
        right = (right if right.dim() == 2 else right[None]).double()
        left = torch.ones(m, 1) if left is None else left
        left = (left if left.dim() == 2 else left[:, None]).double()
        low_rank, low_rank_abs = left @ right, left.abs() @ right.abs()
    exact = product + low_rank

    got = torch.ops.spectral.scaled_mm(*arguments)
    assert got.shape == (m, n)
    assert got.dtype == out_dtype
    assert got.is_contiguous()
    # fp32 sums of k terms, and a few fp32 roundings after them
    bound = 2.0**-24 * ((k + 5) * (a.abs() @ b.abs()) + 6 * low_rank_abs)
    if carrier == "bf16" and out_dtype == torch.bfloat16 and right is not None:
        bound += ROUNDING[torch.bfloat16] * (product.abs() + bound)  # before the term, torch's product is in bf16
    bound += ROUNDING[out_dtype] * (exact.abs() + bound) + (6e-8 if out_dtype == torch.float16 else 1e-38)
    finite = exact.abs() < torch.finfo(out_dtype).max
    assert bool(((got.double() - exact).abs() <= bound)[finite].all())
    reference = scaled_mm_reference(*arguments).double()
    assert bool(((reference - exact).abs() <= bound)[finite].all()), "the bound itself is wrong"


def test_a_wide_result_of_bf16_products_keeps_its_bits() -> None:
    operand = quantized(64, 512)
    arguments = (*operand, *operand, None, None, 64, 64, 512, True, True, "nvfp4", "nvfp4", "bf16", torch.float32)
    got = torch.ops.spectral.scaled_mm(*arguments)
    assert not torch.equal(got, got.bfloat16().float())
    torch.testing.assert_close(got, scaled_mm_reference(*arguments), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("format", FORMATS)
def test_a_wide_identity_operand_is_not_rounded_for_the_carrier(format: str) -> None:
    wide = torch.tensor([[1 + 2.0**-12, -1.0]])
    ones = torch.ops.spectral.quantize(
        *(torch.ones(1, 2), None, None, None, format, FORMATS[format].scales[0], 1, 1, False, 0)
    )
    sizes = (1, 1, 2, True, True, "identity", format, "bf16", torch.bfloat16)
    product = torch.ops.spectral.scaled_mm(wide, torch.empty(0), torch.ones(()), *ones, None, None, *sizes)
    torch.testing.assert_close(product.item(), 2.0**-12, rtol=1e-2, atol=0)


@pytest.mark.parametrize("carrier", ["bf16", "fp32"])
def test_a_poisoned_operand_makes_the_product_nan(carrier: str) -> None:
    codes, scales, tensor_scale = quantized(8, 32)
    poisoned, operand = (codes, scales, tensor_scale * float("nan")), (codes, scales, tensor_scale)
    sizes = (8, 8, 32, True, True, "nvfp4", "nvfp4", carrier, torch.bfloat16)
    assert torch.ops.spectral.scaled_mm(*poisoned, *operand, None, torch.ones(8), *sizes).isnan().all()


@pytest.mark.parametrize("carrier", ["bf16", "fp32"])
def test_a_poisoned_block_makes_its_row_of_the_product_nan(carrier: str) -> None:
    codes, scales, tensor_scale = quantized(8, 64, "mxfp4")
    poisoned = scales.view(torch.uint8).clone()
    poisoned[3, 1] = 255
    sizes = (8, 8, 64, True, True, "mxfp4", "mxfp4", carrier, torch.bfloat16)
    product = torch.ops.spectral.scaled_mm(
        *(codes, poisoned.view(scales.dtype), tensor_scale, codes, scales, tensor_scale, None, None, *sizes)
    )
    assert product.isnan().all(1).tolist() == [row == 3 for row in range(8)]
    assert product.isnan().sum() == 8


def test_identity_is_the_references() -> None:
    a, b, none, one = torch.randn(9, 20), torch.randn(7, 20), torch.empty(0), torch.ones(())
    sizes = (9, 7, 20, True, True, "identity", "identity", "fp32", torch.float32)
    arguments = (a, none, one, b, none, one, None, torch.randn(7), *sizes)
    assert torch.equal(torch.ops.spectral.scaled_mm(*arguments), scaled_mm_reference(*arguments))


def test_the_number_of_threads_changes_no_low_rank_term() -> None:
    operand, left, right = quantized(300, 64), torch.randn(300, 5), torch.randn(5, 300)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            zeros = torch.zeros(300, 64)  # the product itself is torch's
            identity = (zeros, torch.empty(0), torch.ones(()))
            sizes = (300, 300, 64, True, True, "nvfp4", "identity", "fp32", torch.float32)
            results.append(torch.ops.spectral.scaled_mm(*operand, *identity, left, right, *sizes))
    finally:
        torch.set_num_threads(threads)
    in_order = left[:, :1] * right[:1]
    for r in range(1, 5):
        in_order = in_order + left[:, r : r + 1] * right[r : r + 1]
    assert all(torch.equal(result, in_order) for result in results)


def test_tensor_scales_whose_product_underflows_still_scale_the_product() -> None:
    """1e-20 and 1e-19 in each element: 4096 of their products are 4e-36, an fp32 number; 1e-39 / 2688^2 is none."""
    a, b = torch.full((16, 4096), 1e-20), torch.full((16, 4096), 1e-19)
    operands = [torch.ops.spectral.quantize(x, None, None, None, "nvfp4", "amax", 1, 1, False, 0) for x in (a, b)]
    sizes = (16, 16, 4096, True, True, "nvfp4", "nvfp4", "fp32", torch.float32)
    product = torch.ops.spectral.scaled_mm(*operands[0], *operands[1], None, None, *sizes)
    exact = (a.double() @ b.double().t()).float()
    assert torch.allclose(product, exact, rtol=1e-3, atol=0)
