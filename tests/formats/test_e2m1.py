"""E2M1 codes against exact scalar arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.formats import e2m1
from tests import scalar_nvfp4 as scalar

TIES = [(low + high) / 2 for low, high in zip(scalar.E2M1, scalar.E2M1[1:], strict=False)]


def test_magnitudes_are_those_of_the_bit_fields() -> None:
    assert [Fraction(m) for m in e2m1.MAGNITUDES] == scalar.E2M1
    assert scalar.E2M1[-1] == e2m1.MAX


def test_nearest_is_right_for_every_bf16_number() -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    y = bits.view(torch.bfloat16).to(torch.float32)
    y = y[~y.isnan()]
    assert len(y) == 65536 - 2 * 127
    expected = [scalar.e2m1_nearest(v) for v in y.numpy()]
    assert e2m1.encode_nearest(y).tolist() == expected


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


@given(st.floats(-6, 6, width=32))
def test_stochastic_rounding_follows_the_bit_model_for_all_256_random_bytes(value: float) -> None:
    codes = e2m1.encode_stochastic(torch.full((256,), value), torch.arange(256))
    assert codes.tolist() == [scalar.e2m1_stochastic(np.float32(value), r) for r in range(256)]


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
