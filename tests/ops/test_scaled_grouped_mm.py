"""spectral::scaled_grouped_mm and pad_groups: each group as if it were alone."""

import pytest
import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats import FORMATS
from spectral_compile.ops.scaled_grouped_mm import pad_groups, padded_starts, padded_tokens, scaled_grouped_mm
from tests.fake_kernels import assert_fake_agrees

OFFSETS = {"usual": (5, 5, 37, 40), "all of one": (0, 40, 40, 40), "none": (0, 0, 0, 0), "a rest": (0, 3, 20, 33)}
TOKENS, N, K = 40, 48, 64


def groups(offsets: tuple[int, ...]) -> list[slice]:
    return [slice(start, end) for start, end in zip((0, *offsets), offsets, strict=False)]


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("block", [16, 32])
def test_padded_groups_begin_with_a_block_and_keep_their_tokens(block: int, offsets: tuple[int, ...]) -> None:
    x, ends = torch.randn(TOKENS, 3), torch.tensor(offsets, dtype=torch.int32)
    padded = pad_groups(x, ends, block)
    assert padded.shape[0] == padded_tokens(TOKENS, 4, block)
    assert padded.shape[0] % block == 0
    assert_fake_agrees(torch.ops.spectral.pad_groups, x, ends, block)
    for first, group in zip(padded_starts(ends, block).tolist(), groups(offsets), strict=True):
        assert first % block == 0
        size = group.stop - group.start
        assert torch.equal(padded[first : first + size], x[group])
        padded[first : first + size] = 0
    assert not padded.any()


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("b_k_last", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_each_group_is_multiplied_with_its_expert(format: str, b_k_last: bool, offsets: tuple[int, ...]) -> None:
    arguments = grouped(format, b_k_last, offsets)
    got = torch.ops.spectral.scaled_grouped_mm(*arguments)
    assert_fake_agrees(torch.ops.spectral.scaled_grouped_mm, *arguments)
    a, b = (
        (formats.dequantize(formats.Quantized(*arguments[i : i + 3]), format, K) for i in (0, 3))
        if b_k_last
        else (
            formats.dequantize(formats.Quantized(*arguments[:3]), format, K),
            formats.dequantize(formats.Quantized(*arguments[3:6]), format, N).mT,
        )
    )
    for expert, group in enumerate(groups(offsets)):
        torch.testing.assert_close(got[group], a[group] @ b[expert].t(), rtol=1e-4, atol=1e-4)
    assert not got[offsets[-1] :].any()


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("format", FORMATS)
def test_each_experts_gradient_is_of_its_tokens_alone(format: str, offsets: tuple[int, ...]) -> None:
    x, d = torch.randn(TOKENS, K), torch.randn(TOKENS, N)
    arguments = ragged(x, d, format, offsets)
    got = torch.ops.spectral.scaled_grouped_mm(*arguments)
    assert_fake_agrees(torch.ops.spectral.scaled_grouped_mm, *arguments)
    for expert, group in enumerate(groups(offsets)):
        if format == "mxfp4":  # whose blocks depend on nothing but themselves: the group as if it were alone
            alone = [formats.quantize(y[group], format, axis=0) for y in (d, x)]
            a, b = (formats.dequantize(q, format, group.stop - group.start) for q in alone)
            torch.testing.assert_close(got[expert], a @ b.t(), rtol=1e-4, atol=1e-4)
        error = (got[expert] - d[group].t() @ x[group]).norm() / max(1.0, float((d[group].t() @ x[group]).norm()))
        assert error < 0.3


def test_what_is_nobodys_is_zero_even_where_the_product_is_poisoned() -> None:
    arguments = list(grouped("nvfp4", True, OFFSETS["a rest"]))
    arguments[2] = torch.tensor(float("nan"))
    got = scaled_grouped_mm(*arguments)
    assert got[:33].isnan().all()
    assert not got[33:].any()


def test_operands_without_codes_are_refused() -> None:
    arguments = list(grouped("nvfp4", True, OFFSETS["usual"]))
    arguments[12] = "identity"
    with pytest.raises(ValueError, match="grouped products are of nvfp4 and mxfp4 operands, not of 'identity'"):
        scaled_grouped_mm(*arguments)


def grouped(format: str, b_k_last: bool, offsets: tuple[int, ...]) -> tuple:
    a = formats.quantize(torch.randn(TOKENS, K), format)
    square = FORMATS[format].block
    shape = (len(offsets), N, K) if b_k_last else (len(offsets), K, N)
    b = formats.quantize(torch.randn(shape), format, tile_rows=square)
    how = (TOKENS, N, K, False, b_k_last, format, format, "bf16", torch.float32)
    return (*a, *b, torch.tensor(offsets, dtype=torch.int32), *how)


def ragged(x: Tensor, d: Tensor, format: str, offsets: tuple[int, ...]) -> tuple:
    ends = torch.tensor(offsets, dtype=torch.int32)
    padded = [pad_groups(y, ends, FORMATS[format].block) for y in (d, x)]
    a, b = (formats.quantize(y, format, axis=0) for y in padded)
    how = (d.shape[1], x.shape[1], padded[0].shape[0], True, True, format, format, "bf16", torch.float32)
    return (*a, *b, ends, *how)
