"""spectral::grouped_quantize, stack_quantize and the grouped means: each expert's operand as if it were alone."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.formats import FORMATS
from spectral_compile.ops.groups import expert_stream, padded_spans, padded_tokens, spans
from tests.fake_kernels import assert_fake_agrees, equal_bits
from tests.ops.groups import counts_and_rest, slices

spectral = torch.ops.spectral

HOW = st.sampled_from(
    [
        ("nvfp4", "amax", 1, False),
        ("nvfp4", "amax", 16, False),
        ("nvfp4", "headroom", 1, True),
        ("mxfp4", "even", 1, False),
        ("mxfp4", "even", 32, True),
        ("identity", "", 1, False),
        ("identity", "", 1, True),
    ]
)


def tokens_of(counts: list[int], rest: int, features: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts' magnitudes are far apart; what is nobody's is NaN."""
    x = torch.cat([torch.randn(count, features) * 100.0**i for i, count in enumerate(counts)])
    offsets = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.cat((x, torch.full((rest, features), torch.nan))), offsets


@given(counts_and_rest(), HOW, st.sampled_from([0, 1]), st.booleans(), st.booleans())
def test_each_group_is_quantised_as_if_it_were_alone(
    tokens: tuple[list[int], int], how: tuple[str, str, int, bool], axis: int, centered: bool, stochastic: bool
) -> None:
    x, offsets = tokens_of(*tokens)
    format, scale, tile_rows, hadamard = how
    seed = torch.tensor([7]) if stochastic and format != "identity" else None
    mean = torch.randn(len(offsets), x.shape[1]) if centered else None
    block = max(16 if hadamard else 1, FORMATS[format].block if format in FORMATS else 1)
    arguments = (x, mean, None, seed, offsets, format, scale, axis, tile_rows, hadamard, 5, block)
    codes, scales, tensor_scales = spectral.grouped_quantize(*arguments)
    assert_fake_agrees(spectral.grouped_quantize, *arguments)
    packed = 1 if format == "identity" else 2
    touched = torch.zeros(codes.shape, dtype=torch.bool)
    places = padded_spans(spans(offsets, x.shape[0]), block)
    for expert, (group, (first, last)) in enumerate(zip(slices(offsets), places, strict=True)):
        if group.start == group.stop:
            continue
        expert_how = (format, scale, axis, tile_rows, hadamard, expert_stream(5, expert))
        of = None if mean is None else mean[expert]
        alone = spectral.quantize(x[group], of, None, seed, *expert_how)
        assert torch.equal(alone[2], tensor_scales[expert])
        if axis == 1:
            held = codes[group], _bytes(scales)[group] if scales.numel() else scales
            alone_scales = _bytes(alone[1]).repeat_interleave(tile_rows, 0)[: last - first]
            touched[group] = True
        else:
            assert first % block == 0
            begin, width = first // packed, alone[0].shape[1]
            held_scales = scales
            if scales.numel():
                unit = FORMATS[format].block
                held_scales = _bytes(scales)[:, first // unit :][:, : alone[1].shape[1]]
            held = codes[:, begin : begin + width], held_scales
            touched[:, begin : begin + width] = True
            alone_scales = _bytes(alone[1])
        assert torch.equal(held[0], alone[0])
        assert torch.equal(_bytes(held[1].contiguous()), alone_scales)
    assert not codes[~touched].any()


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), HOW, st.sampled_from([0, 1]))
def test_each_matrix_of_a_stack_is_quantised_as_if_it_were_alone(
    experts: int, rows: int, cols: int, how: tuple[str, str, int, bool], axis: int
) -> None:
    x = torch.randn(experts, rows, cols) * 100.0 ** torch.arange(experts)[:, None, None]
    format, scale, tile_rows, hadamard = how
    arguments = (x, None, format, scale, axis, tile_rows, hadamard, 5)
    found = spectral.stack_quantize(*arguments)
    assert_fake_agrees(spectral.stack_quantize, *arguments)
    for expert in range(experts):
        alone = spectral.quantize(x[expert], None, None, None, format, scale, axis, tile_rows, hadamard, 5)
        for part, expected in zip(found, alone, strict=True):
            held = part[expert] if part.numel() else part
            assert equal_bits(held, expected)


def test_experts_of_one_operand_do_not_share_random_bits() -> None:
    x, offsets = torch.randn(16, 32).repeat(2, 1), torch.tensor([16, 32], dtype=torch.int32)
    codes, _, _ = spectral.grouped_quantize(
        x, None, None, torch.tensor([1]), offsets, "nvfp4", "amax", 1, 1, False, 0, 1
    )
    assert not torch.equal(codes[:16], codes[16:])
    assert len({expert_stream(3, expert) for expert in range(4096)}) == 4096


def test_a_value_that_is_not_finite_stays_with_its_expert() -> None:
    x, offsets = tokens_of([16, 16, 16], rest=5)
    x[20, 3] = torch.inf
    _, _, tensor_scales = spectral.grouped_quantize(x, None, None, None, offsets, "nvfp4", "amax", 1, 1, False, 0, 1)
    assert tensor_scales.isnan().tolist() == [False, True, False]


@given(counts_and_rest(), st.integers(1, 20))
def test_means_are_of_each_experts_own_tokens(tokens: tuple[list[int], int], min_rows: int) -> None:
    x, offsets = tokens_of(*tokens)
    x[1::3] = 0
    means = spectral.grouped_token_mean(x, offsets, min_rows)
    nonzero = spectral.grouped_token_mean_nonzero(x, offsets, min_rows)
    centered = spectral.grouped_center(x, nonzero[0], nonzero[1], offsets)
    for operator, arguments in (
        (spectral.grouped_token_mean, (x, offsets, min_rows)),
        (spectral.grouped_token_mean_nonzero, (x, offsets, min_rows)),
        (spectral.grouped_center, (x, nonzero[0], nonzero[1], offsets)),
    ):
        assert_fake_agrees(operator, *arguments)
    for expert, group in enumerate(slices(offsets)):
        if group.start == group.stop:
            assert not any(part[expert].any() for part in (means, nonzero[0], nonzero[2], nonzero[3]))
            continue
        assert torch.equal(means[expert], spectral.token_mean(x[group], min_rows))
        mean, rows, total, common = spectral.token_mean_nonzero(x[group], min_rows)
        assert torch.equal(nonzero[0][expert], mean)
        assert torch.equal(nonzero[1][group], rows)
        assert torch.equal(nonzero[2][expert], total)
        assert torch.equal(nonzero[3][expert], common)
        assert torch.equal(centered[group], spectral.center(x[group], mean, rows))
    last = int(offsets[-1])
    assert not nonzero[1][last:].any()
    assert not centered[last:].any()


@pytest.mark.parametrize("offsets", [[5, 3], [3, 41]], ids=["falling", "past the end"])
def test_offsets_that_mean_no_groups_are_refused(offsets: list[int]) -> None:
    ends, x = torch.tensor(offsets), torch.randn(40, 16)
    with pytest.raises(ValueError, match="offsets of groups rise from 0 to at most 40 tokens: these are"):
        spectral.grouped_token_mean(x, ends, 1)
    with pytest.raises(ValueError, match="offsets of groups rise"):
        spectral.grouped_split_mm(x, torch.randn(2, 16, 8), ends, None, None, False, torch.float32)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.sampled_from([1, 16, 32]))
def test_padded_groups_fit_whatever_the_offsets(counts: list[int], block: int) -> None:
    ends = torch.tensor(counts).cumsum(0)
    padded = padded_spans(spans(ends, int(ends[-1])), block)
    assert [last - first for first, last in padded] == counts
    assert all(first % block == 0 for first, _ in padded)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(padded))
    assert -(-padded[-1][1] // block) * block <= padded_tokens(sum(counts), len(counts), block)


def _bytes(x: Any) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)
