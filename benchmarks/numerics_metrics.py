"""What rounding a tensor to FP4 does to it, in numbers. Sums are in fp64."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats.hadamard import inverse_hadamard

_ROUNDING = 1e-6  # fp32's, with which a block's largest value comes out a little over 6 where its scale is exact


@dataclass(frozen=True)
class Setting:
    """A quantiser of matrices [rows, cols] in blocks along cols. square: blocks are as high as they are wide."""

    format: str
    scale: str
    stochastic: bool = False
    square: bool = False
    hadamard: bool = False

    @property
    def block(self) -> int:
        return formats.FORMATS[self.format].block

    @property
    def label(self) -> str:
        return f"{self.format} {self.scale}, {'stochastic' if self.stochastic else 'nearest'}"


def settings() -> list[Setting]:
    """Every format and scale rule, rounded to nearest and, where that is defined, stochastically."""
    pairs = [(name, scale) for name, kind in formats.FORMATS.items() for scale in kind.scales]
    nearest = [Setting(*pair) for pair in pairs]
    return nearest + [Setting(*pair, stochastic=True) for pair in pairs if pair[1] != "four_six"]


@dataclass(frozen=True)
class RoundTrip:
    """x [rows, cols], the values it came back with, and each element's unit (block scale times tensor scale), fp32.

    After a Hadamard transform `unit` belongs to the transformed values: only `sqnr` means something then.
    """

    x: Tensor
    back: Tensor
    unit: Tensor
    setting: Setting

    def sqnr(self) -> float:
        return sqnr(self.x, self.back)

    def clipped(self) -> float:
        """Share of values that saturate: more than 6 of their units, by more than fp32's rounding; zero units apart."""
        return _share((self.x.abs() > 6 * (1 + _ROUNDING) * self.unit) & (self.unit > 0))

    def zeroed(self) -> float:
        """Share of values that are not zero and come back as zero."""
        return _share((self.back == 0) & (self.x != 0))

    def shrinkage(self) -> float:
        """E[back x] / E[x**2] - 1: 0 where magnitudes are kept on average, below where they shrink."""
        x = self.x.double()
        return float((self._expected() * x).sum() / x.square().sum() - 1)

    def largest_shrinkage(self) -> float:
        """The mean of E[back] / x - 1 over the largest value of each 1 x block; blocks of zeros do not count."""
        x, back = (t.double().unflatten(-1, (-1, self.setting.block)) for t in (self.x, self._expected()))
        where = x.abs().argmax(-1, keepdim=True)
        x, back = x.gather(-1, where), back.gather(-1, where)
        return float((back[x != 0] / x[x != 0]).mean() - 1)

    def _expected(self) -> Tensor:
        """What comes back on average over the random bits, fp64: heavy tails make one draw a noisy estimate of it."""
        if not self.setting.stochastic:
            return self.back.double()
        unit = self.unit.double()
        y = torch.where(unit > 0, self.x.double() / unit, 0.0)
        return expected_stochastic(y.clamp(-6, 6)) * unit


def expected_stochastic(y: Tensor) -> Tensor:
    """The mean over all 256 random bytes of y in [-6, 6] rounded stochastically to E2M1, fp64.

    y lies a fraction f of the way between two neighbours; f + byte / 256 reaches 1 for floor(256 f) of the bytes.
    """
    magnitude = y.double().abs()
    step = torch.where(magnitude >= 4, 2.0, torch.where(magnitude >= 2, 1.0, 0.5))
    low = (magnitude / step).floor() * step
    return (low + step * ((magnitude - low) / step * 256).floor() / 256).copysign(y)


def round_trip(x: Tensor, setting: Setting, gain: Tensor | float = 1.0, seed: int = 1) -> RoundTrip:
    """x [rows, cols], cols a multiple of the block (and rows, for square blocks).

    gain: x is multiplied by it, a factor for each row [rows, 1], before it is rounded, and divided by it afterwards.
    """
    q = formats.quantize(
        x * gain,
        setting.format,
        scale=setting.scale,
        tile_rows=setting.block if setting.square else 1,
        hadamard=setting.hadamard,
        seed=torch.tensor([seed]) if setting.stochastic else None,
    )
    back = formats.dequantize(q, setting.format, x.shape[-1])
    if setting.hadamard:
        back = inverse_hadamard(back)
    unit = q.scales.float().repeat_interleave(setting.block, -1)
    if setting.square:
        unit = unit.repeat_interleave(setting.block, -2)
    return RoundTrip(x, back / gain, unit * q.tensor_scale / gain, setting)


def sqnr(x: Tensor, back: Tensor) -> float:
    """Signal-to-quantisation-noise ratio, dB: 10 log10(sum x**2 / sum (back - x)**2)."""
    return -20 * math.log10(relative_error(back, x))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|, Frobenius norms."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def token_centred(x: Tensor) -> Tensor:
    """x [tokens, features] less its mean over tokens, fp64."""
    return x.double() - x.double().mean(0)


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
