"""spectral::scaled_grouped_mm and grouped_split_mm: each group as if it were alone."""

import pytest
import torch

from spectral_compile.formats import FORMATS, Quantized, dequantize
from spectral_compile.ops.scaled_grouped_mm import scaled_grouped_mm
from tests.fake_kernels import assert_fake_agrees
from tests.ops.groups import OFFSETS, TOKENS, K, N, grouped, int32, ragged, slices

spectral = torch.ops.spectral


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("b_k_last", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_each_group_is_multiplied_with_its_expert(format: str, b_k_last: bool, offsets: tuple[int, ...]) -> None:
    arguments = grouped(format, b_k_last, offsets, left=True, right=True)
    got = spectral.scaled_grouped_mm(*arguments)
    assert_fake_agrees(spectral.scaled_grouped_mm, *arguments)
    a_codes, a_scales, a_tensor_scales, *b, _, left, right = arguments[:9]
    for expert, group in enumerate(slices(offsets)):
        a = dequantize(Quantized(a_codes[group], a_scales[group], a_tensor_scales[expert]), format, K)
        stored = dequantize(Quantized(*(part[expert] for part in b)), format, K if b_k_last else N)
        expected = a @ (stored.t() if b_k_last else stored) + left[group, None] * right[expert]
        torch.testing.assert_close(got[group], expected, rtol=1e-4, atol=1e-3)
    assert not got[offsets[-1] :].any()


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("format", FORMATS)
def test_each_experts_gradient_is_of_its_tokens_alone(format: str, offsets: tuple[int, ...], hadamard: bool) -> None:
    x, d = torch.randn(TOKENS, K), torch.randn(TOKENS, N)
    arguments = ragged(x, d, format, offsets, rank=2, hadamard=hadamard)
    got = spectral.scaled_grouped_mm(*arguments)
    assert_fake_agrees(spectral.scaled_grouped_mm, *arguments)
    left, right = arguments[7:9]
    for expert, group in enumerate(slices(offsets)):
        tokens = group.stop - group.start
        if not tokens:
            assert not got[expert].any()
            continue
        alone = [
            spectral.quantize(y[group], None, None, None, format, FORMATS[format].scales[0], 0, 1, hadamard, 0)
            for y in (d, x)
        ]
        k = -(-tokens // 16) * 16 if hadamard else tokens
        how = (N, K, k, True, True, format, format, "bf16", torch.float32)
        assert torch.equal(got[expert], spectral.scaled_mm(*alone[0], *alone[1], left[expert], right[expert], *how))
        expected = d[group].t() @ x[group]
        assert (got[expert] - left[expert] @ right[expert] - expected).norm() < 0.3 * expected.norm()


def test_what_is_nobodys_is_zero_and_a_poisoned_expert_is_alone() -> None:
    arguments = list(grouped("nvfp4", True, OFFSETS["a rest"], right=True))
    arguments[2][1] = torch.nan
    got = scaled_grouped_mm(*arguments)
    assert got[:3].isnan().all()
    assert not got[3:].isnan().any()
    assert not got[33:].any()


def test_operands_that_are_not_rounded_are_multiplied_as_they_are() -> None:
    a, b = torch.randn(TOKENS, K), torch.randn(4, K, N)
    ends = int32(OFFSETS["a rest"])
    ones, none = torch.ones(4), torch.empty(0)
    how = (TOKENS, N, K, 0, False, "identity", "identity", "fp32", torch.float32)
    got = spectral.scaled_grouped_mm(a, none, ones, b, none, ones, ends, None, None, *how)
    assert torch.equal(got, spectral.grouped_split_mm(a, b, ends, None, None, False, torch.float32))
    for expert, group in enumerate(slices(ends)):
        torch.testing.assert_close(got[group], a[group] @ b[expert], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
def test_split_products_are_the_products_and_their_terms(offsets: tuple[int, ...]) -> None:
    a, b, ends = torch.randn(TOKENS, K), torch.randn(4, K, N), int32(offsets)
    left, right = torch.randn(TOKENS), torch.randn(4, N)
    got = spectral.grouped_split_mm(a, b, ends, left, right, False, torch.float32)
    assert_fake_agrees(spectral.grouped_split_mm, a, b, ends, left, right, False, torch.float32)
    d, of_d, of_a = torch.randn(TOKENS, N), torch.randn(4, N, 2), torch.randn(4, 2, K)
    gradient = spectral.grouped_split_mm(d, a, ends, of_d, of_a, True, torch.float32)
    assert_fake_agrees(spectral.grouped_split_mm, d, a, ends, of_d, of_a, True, torch.float32)
    for expert, group in enumerate(slices(offsets)):
        expected = a[group] @ b[expert] + left[group, None] * right[expert]
        torch.testing.assert_close(got[group], expected, rtol=1e-5, atol=1e-4)
        if group.stop > group.start:
            expected = d[group].t() @ a[group] + of_d[expert] @ of_a[expert]
            torch.testing.assert_close(gradient[expert], expected, rtol=1e-5, atol=1e-4)
        else:
            assert not gradient[expert].any()
    assert not got[offsets[-1] :].any()
