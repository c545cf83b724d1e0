"""E2M1, the four-bit float: one sign, two exponent bits (bias 1), one mantissa bit (OCP MX v1.0, section 5.3.3)."""

import torch
from torch import Tensor

MAX = 6.0
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by code; bit 3 of a code is the sign

# The boundary between magnitude codes c and c + 1, and whether a tie there goes up (to the even code).
_BOUNDARIES = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))


def encode_nearest(y: Tensor) -> Tensor:
    """Codes (uint8, 0..15) of fp32 values by round to nearest, ties to the even code; beyond 6 saturates.

    -0 and small negative values keep their sign (code 8). There is no code for NaN: it gets a zero's, and the scale
    has to say it.
    """
    magnitude = y.abs()
    code = torch.zeros_like(y, dtype=torch.uint8)
    for boundary, tie_goes_up in _BOUNDARIES:
        code += (magnitude >= boundary) if tie_goes_up else (magnitude > boundary)
    return code | _sign_bit(y)


def encode_stochastic(y: Tensor, random_byte: Tensor) -> Tensor:
    """Codes of fp32 values in [-6, 6], rounded up with the probability that 8 random bits can express.

    `random_byte` holds one value 0..255 an element. This is the bit model of Blackwell's `cvt.rs`: the random
    fraction of the local step is added to |y| and the sum truncated, so the mean is low by 1/512 of a step.
    """
    u = random_byte.to(torch.float32) / 256
    t = y.abs() + u * _step(y.abs())  # the product is exact: one rounding, as in a fused multiply-add
    step = _step(t)
    truncated = torch.clamp(torch.floor(t / step) * step, max=MAX)
    return encode_nearest(truncated) | _sign_bit(y)


def decode(codes: Tensor) -> Tensor:
    """fp32 values of codes 0..15 (uint8)."""
    table = torch.tensor(MAGNITUDES + tuple(-m for m in MAGNITUDES), dtype=torch.float32, device=codes.device)
    return table[codes.to(torch.int64)]


def pack(codes: Tensor) -> Tensor:
    """Two codes a byte along the last axis, which must be even: the even index in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: the last axis doubles."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def _step(magnitude: Tensor) -> Tensor:
    """The distance between neighbouring E2M1 values at a magnitude."""
    return torch.where(magnitude >= 4, 2.0, torch.where(magnitude >= 2, 1.0, 0.5))


def _sign_bit(y: Tensor) -> Tensor:
    return torch.signbit(y).to(torch.uint8) << 3
