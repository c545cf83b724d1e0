"""Each mode of mean removal against its independent statement in `benchmarks.mean_modes`."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks import mean_modes
from benchmarks.mean_modes import Quantisers, fp4
from spectral_compile import Hadamard, MeanCenter, Operand, QuantizeFP4
from tests.capture import capture

TOKENS, FEATURES, OUT = 64, 48, 40


def grid(*shape: int) -> Tensor:
    """Numbers whose sums are exact in any order, so that a mean has one value whoever computes it."""
    return torch.randint(-64, 65, shape) / 16


@pytest.mark.parametrize(
    ("mode", "hadamard"),
    [("hp", False), ("hp", True), ("requant", False), ("requant", True), ("paper", False)],  # paper: no Hadamard
)
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize("square", [False, True])
def test_products_are_those_of_the_formulas(mode: mean_modes.Mode, format: str, square: bool, hadamard: bool) -> None:
    linear = nn.Linear(FEATURES, OUT, bias=False)
    x, d = grid(TOKENS, FEATURES) + 3, grid(TOKENS, OUT) + 0.5
    scale = "amax" if format == "nvfp4" else "even"
    operand = Operand(rounding="nearest", scale=scale)  # type: ignore[arg-type]
    quantizer = QuantizeFP4(
        format=format,  # type: ignore[arg-type]
        activations=operand,
        weights=Operand(square=square, scale=scale),  # type: ignore[arg-type]
        gradients=operand,
    )
    passes = [MeanCenter(mode=mode), quantizer, Hadamard(gemms=("wgrad",) if hadamard else ())]  # type: ignore[arg-type]
    got = capture(linear, x.requires_grad_(), passes=passes, loss=lambda y: (y * d).sum())

    block = {"nvfp4": 16, "mxfp4": 32}[format]
    plain, weight = fp4(format, scale), fp4(format, scale, tile_rows=block if square else 1)
    q = Quantisers(plain, weight, plain, plain)
    moved = fp4(format, scale, hadamard=hadamard)
    x, w = x.detach(), linear.weight.detach()
    expected = {
        "output": mean_modes.fprop(x, w, q, mode),
        "input0": mean_modes.dgrad(d, w, q, mode),
        "weight": mean_modes.wgrad(d, x, Quantisers(moved, weight, moved, plain), mode),
    }
    for name, value in expected.items():
        result = got.output.detach() if name == "output" else got.gradients[name]
        torch.testing.assert_close(result.double(), value.double(), rtol=1e-5, atol=1e-4 * float(value.abs().max()))
