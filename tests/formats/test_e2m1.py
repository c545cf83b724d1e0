"""E2M1 codes against exact scalar arithmetic."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import e2m1
from tests.scalar import floats as scalar

TIES = scalar.ties(scalar.E2M1)


def every_bf16() -> Tensor:
    """All 65536 bit patterns, as fp32."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    return bits.view(torch.bfloat16).to(torch.float32)


def step(magnitude: Fraction) -> Fraction:
    """The distance from the E2M1 value at or below a magnitude to the next one."""
    return Fraction(2) if magnitude >= 4 else Fraction(1) if magnitude >= 2 else Fraction(1, 2)


def test_magnitudes_are_those_of_the_bit_fields() -> None:
    assert [Fraction(m) for m in e2m1.MAGNITUDES] == scalar.E2M1
    assert e2m1.MAGNITUDES == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert e2m1.MAGNITUDES[-1] == e2m1.MAX


def test_nearest_is_right_for_every_bf16_number_infinities_and_minus_zero_included() -> None:
    y = every_bf16()
    y = y[~y.isnan()]
    assert len(y) == 65536 - 2 * 127
    exact = [7 if np.isinf(v) else scalar.nearest(Fraction(float(v)), scalar.E2M1) for v in y.abs().numpy()]
    expected = [code | int(np.signbit(v)) << 3 for code, v in zip(exact, y.numpy(), strict=True)]
    assert expected == [scalar.e2m1_nearest(v) for v in y.numpy()]  # doubles do as well as fractions
    assert e2m1.encode_nearest(y).tolist() == expected
    assert e2m1.encode_nearest(y.clamp(-6, 6)).tolist() == expected
    assert dict(zip(y.tolist(), expected, strict=True))[float("-inf")] == 15


def test_nan_has_the_code_of_a_zero() -> None:
    """Which is why it is the scale that says NaN."""
    y = every_bf16()
    y = y[y.isnan()]
    assert len(y) == 2 * 127
    for nan in (y, y.clamp(-6, 6)):
        assert (e2m1.encode_nearest(nan) & 7 == 0).all()


@pytest.mark.parametrize("tie", TIES, ids=str)
def test_a_tie_goes_to_the_even_code_and_its_fp32_neighbours_to_either_side(tie: Fraction) -> None:
    low = scalar.nearest(tie - Fraction(1, 100), scalar.E2M1)
    even = low if low % 2 == 0 else low + 1
    middle = np.float32(float(tie))
    around = [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(9))]
    y = torch.tensor(np.array(around))
    assert e2m1.encode_nearest(y).tolist() == [low, even, low + 1]
    assert e2m1.encode_nearest(-y).tolist() == [low + 8, even + 8, low + 9]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_nearest_is_right_for_any_fp32_number(values: list[float]) -> None:
    y = np.array(values, np.float32)
    assert e2m1.encode_nearest(torch.from_numpy(y)).tolist() == [scalar.e2m1_nearest(v) for v in y]


def test_decoded_codes_encode_to_themselves_and_code_8_is_minus_zero() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    values = e2m1.decode(codes)
    assert values.dtype == torch.float32
    assert [abs(Fraction(v)) for v in values.tolist()] == scalar.E2M1 * 2
    assert values.signbit().tolist() == [False] * 8 + [True] * 8
    assert torch.equal(e2m1.encode_nearest(values), codes)


def test_even_index_is_packed_into_the_low_nibble() -> None:
    assert e2m1.pack(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]


def test_unpack_inverts_pack_for_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(2, 128)
    assert e2m1.unpack(packed).shape == (2, 256)
    assert torch.equal(e2m1.pack(e2m1.unpack(packed)), packed)
    assert e2m1.unpack(packed)[0, :6].tolist() == [0, 0, 1, 0, 2, 0]


@given(st.floats(-6, 6, width=32))
def test_stochastic_rounding_follows_the_bit_model_for_all_256_random_bytes(value: float) -> None:
    codes = e2m1.encode_stochastic(torch.full((256,), value), torch.arange(256))
    assert codes.tolist() == [scalar.e2m1_stochastic(np.float32(value), r) for r in range(256)]


def test_stochastic_rounding_of_every_bf16_number_goes_up_for_exactly_as_many_bytes_as_it_should() -> None:
    """|y| + r / 256 of a step reaches the next value for the largest r, and only there."""
    y = every_bf16()
    y = y[y.abs() <= 6]
    magnitudes = [Fraction(v) for v in y.abs().tolist()]
    low = [min(int(np.searchsorted(scalar.E2M1_FLOATS, float(m), "right")) - 1, 6) for m in magnitudes]
    codes = e2m1.encode_stochastic(y[:, None].expand(-1, 256), torch.arange(256))
    assert torch.equal((codes >> 3).bool(), y.signbit()[:, None].expand(-1, 256))
    up = (codes & 7) - torch.tensor(low, dtype=torch.uint8)[:, None]
    assert (up <= 1).all()
    assert (up[:, 1:] >= up[:, :-1]).all()
    expected = [
        256 - ceil((scalar.E2M1[c + 1] - m) / step(m) * 256) if m < 6 else 256
        for c, m in zip(low, magnitudes, strict=True)
    ]
    assert up.sum(1).tolist() == expected


@pytest.mark.parametrize("code", range(7))
@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_goes_up_for_as_many_bytes_as_the_value_is_256ths_of_a_step_up(
    code: int, sign: int
) -> None:
    low, high = scalar.E2M1[code], scalar.E2M1[code + 1]
    fractions = [Fraction(i, 512) for i in range(512)]
    y = torch.tensor([sign * float(low + f * (high - low)) for f in fractions])
    codes = e2m1.encode_stochastic(y[:, None].expand(-1, 256), torch.arange(256))

    ups = ((codes & 7) == code + 1).sum(1)
    downs = ((codes & 7) == code).sum(1)
    assert ups.tolist() == [int(256 * f) for f in fractions]  # truncated: 0 for the value itself, never 256
    assert (ups + downs).unique().tolist() == [256]
    assert (codes >> 3).unique().tolist() == [0 if sign == 1 else 1]


def test_stochastic_rounding_is_low_by_half_a_256th_of_a_step_on_average() -> None:
    for code in range(7):
        low, high = scalar.E2M1[code], scalar.E2M1[code + 1]
        y = torch.tensor([float(low + Fraction(2 * i + 1, 2048) * (high - low)) for i in range(1024)])
        values = e2m1.decode(e2m1.encode_stochastic(y[:, None].expand(-1, 256), torch.arange(256)))
        bias = (values.to(torch.float64).mean(1) - y).mean().item() / float(high - low)
        assert bias == pytest.approx(-1 / 512, rel=1e-9)
