"""The three GEMMs of a linear layer with the token mean taken out: an independent statement of the methods.

    X [tokens, in], W [out, in], D [tokens, out] = dLoss/dY;  Y = X W',  dX = D W,  dW = D' X
    1 [tokens, 1];  muX [1, in] and muD [1, out]: means over tokens

mode      Y
plain     Q(X) Q(W)'
hp        Q(X - 1 muX) Q(W)' + 1 (muX W')        muX in fp32, W in its own precision
requant   Q(X - 1 b) Q(W)' + 1 (b Q(W)')         b = Q(muX)
paper     Q(X - 1 muX) Q(W)' + 1 (Q(muX) Q(W)')

dX has the form of Y, with D for X, muD for muX, a = Q(muD) for b, and W for W'. With XR, DR the residuals of the mode:

mode      dW
plain     Q(D)' Q(X)
hp        Q(DR)' Q(XR) + sum(D)' muX
requant   Q(DR)' Q(XR) + sum(D)' b + a' (sum(X) - tokens b)
paper     (Q(DR) + 1 Q(muD))' (Q(XR) + 1 Q(muX))

Each is exact where Q changes nothing. The compiler's guards (few tokens, rows of zeros: docs/how-it-works.md) are not
here. Means and products are summed in fp64: what is measured is the quantisers' doing, on any number of threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats.hadamard import SIZE, inverse_hadamard

Mode = Literal["plain", "hp", "requant", "paper"]
MODES: tuple[Mode, ...] = get_args(Mode)

Quantiser = Callable[[Tensor, int], Tensor]
"""(matrix, the axis that the product contracts) to the values, of the same shape, that its codes stand for."""


def exact(x: Tensor, axis: int) -> Tensor:
    """The quantiser that changes nothing."""
    return x


def fp4(
    format: str = "nvfp4",
    scale: str | None = None,
    tile_rows: int = 1,
    hadamard: bool = False,
    seed: int | None = None,
    stream: int = 0,
) -> Quantiser:
    """Blocks along the contracted axis; the arguments are those of `formats.quantize`, and `seed` asks for stochastic
    rounding. Axes have random bits of their own: stream and stream + 1. With `hadamard`, the values come back from the
    transform, which leaves the product of two such operands as it is; the axis must be a multiple of 16.
    """
    key = None if seed is None else torch.tensor([seed])

    def quantiser(x: Tensor, axis: int) -> Tensor:
        size = x.shape[axis]
        if hadamard and size % SIZE:
            raise ValueError(f"a Hadamard transform of {size} values has no inverse of that size; pad to 16")
        arguments = {"axis": axis, "scale": scale, "tile_rows": tile_rows, "hadamard": hadamard}
        q = formats.quantize(x, format, **arguments, seed=key, stream=stream + axis)  # type: ignore[arg-type]
        values = formats.dequantize(q, format, size, axis)
        return inverse_hadamard(values, axis) if hadamard else values

    return quantiser


@dataclass(frozen=True)
class Quantisers:
    """How each operand is rounded. `mean`: a mean [1, features], along its features, in the modes that round it."""

    activation: Quantiser = exact
    weight: Quantiser = exact
    gradient: Quantiser = exact
    mean: Quantiser = exact


def fprop(x: Tensor, w: Tensor, q: Quantisers, mode: Mode) -> Tensor:
    """Y [tokens, out], fp64, of x [tokens, in] and w [out, in]; both are blocked along `in`."""
    return _times_weight(_wide(x), q.activation, _wide(w).T, _wide(q.weight(_wide(w), 1)).T, q, mode)


def dgrad(d: Tensor, w: Tensor, q: Quantisers, mode: Mode) -> Tensor:
    """dX [tokens, in], fp64, of d [tokens, out] and w [out, in]; both are blocked along `out`."""
    return _times_weight(_wide(d), q.gradient, _wide(w), _wide(q.weight(_wide(w), 0)), q, mode)


def wgrad(d: Tensor, x: Tensor, q: Quantisers, mode: Mode) -> Tensor:
    """dW [out, in], fp64, of d [tokens, out] and x [tokens, in]; both are blocked along tokens."""
    d, x = _wide(d), _wide(x)
    if mode == "plain":
        return _product(q.gradient(d, 0).T, q.activation(x, 0))
    mean_d, mean_x = token_mean(d), token_mean(x)
    rounded_d, rounded_x = q.mean(mean_d, 1), q.mean(mean_x, 1)
    from_d, from_x = (rounded_d, rounded_x) if mode == "requant" else (mean_d, mean_x)
    dr, xr = q.gradient(d - from_d, 0), q.activation(x - from_x, 0)
    if mode == "paper":
        return _product((dr.double() + rounded_d).T, xr.double() + rounded_x)
    result = _product(dr.T, xr) + _product(_token_sum(d).T, from_x)
    if mode == "requant":
        result += _product(from_d.T, _token_sum(x) - len(x) * from_x.double())
    return result


def token_mean(x: Tensor) -> Tensor:
    """[1, features] of x [tokens, features]: summed in fp64, rounded once to the precision of x."""
    return (_token_sum(x) / len(x)).to(x.dtype)


def _times_weight(x: Tensor, quantiser: Quantiser, w: Tensor, rounded_w: Tensor, q: Quantisers, mode: Mode) -> Tensor:
    """x [tokens, k] times w [k, n], of which `rounded_w` is the quantised form."""
    if mode == "plain":
        return _product(quantiser(x, 1), rounded_w)
    mean = token_mean(x)
    rounded = q.mean(mean, 1)
    residual = quantiser(x - (rounded if mode == "requant" else mean), 1)
    mean_path = _product(mean, w) if mode == "hp" else _product(rounded, rounded_w)
    return _product(residual, rounded_w) + mean_path


def _wide(x: Tensor) -> Tensor:
    """fp32, unless it is fp64 already."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _token_sum(x: Tensor) -> Tensor:
    return x.sum(0, keepdim=True, dtype=torch.float64)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double()
