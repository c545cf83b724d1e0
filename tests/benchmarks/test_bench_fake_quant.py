"""Do the fake quantisers that ours is compared with round as the format says?"""

import pytest
import torch
from torch import nn

from benchmarks.bench_fake_quant import QUANTIZERS, FakeQuantizedLinear, fake_quantize, plain
from spectral_compile import formats

QUANTIZER_NAMES = [
    "plain",
    pytest.param("torchao", marks=pytest.mark.skipif("not __import__('importlib.util').util.find_spec('torchao')")),
]


@pytest.mark.parametrize("name", QUANTIZER_NAMES)
@pytest.mark.parametrize("axis", [0, 1])
def test_values_are_those_of_the_format(name: str, axis: int) -> None:
    x = torch.randn(64, 48)
    expected = formats.dequantize(formats.quantize(x, axis=axis), "nvfp4", x.shape[axis], axis=axis)
    # Scales are computed in another order, so a value on a boundary may fall to the other side.
    same = torch.isclose(QUANTIZERS[name].matrix(x, torch.float32, axis, False), expected, rtol=1e-6)
    assert same.float().mean() > 0.99


def test_square_blocks() -> None:
    x = torch.randn(64, 48)
    expected = formats.dequantize(formats.quantize(x, tile_rows=16), "nvfp4", 48)
    same = torch.isclose(plain(x, torch.float32, 1, False, square=True), expected, rtol=1e-6)
    assert same.float().mean() > 0.99


def test_stochastic_rounding_is_right_on_average() -> None:
    x = torch.randn(16, 16)
    draws = torch.stack([plain(x, torch.float32, 1, stochastic=True) for _ in range(2000)])
    inside = x.abs() < 0.9 * x.abs().amax(1, keepdim=True)  # the rest may be clipped: scales are rounded
    assert (draws.mean(0) - x)[inside].abs().max() < 0.06
    assert draws.std(0).max() > 0


@pytest.mark.parametrize("name", QUANTIZER_NAMES)
def test_gradients_are_close_to_the_exact_ones(name: str) -> None:
    linear = nn.Linear(64, 32, bias=False)
    fake = FakeQuantizedLinear(linear, name)
    x = torch.randn(2, 64, 64, requires_grad=True)
    d = torch.randn(2, 64, 32) + 3.0  # with a mean that is worth removing
    results = []
    for layer in (linear, fake):
        y = layer(x + 2.0)
        results.append((y.detach(), *torch.autograd.grad(y, (x, linear.weight), d)))
    for exact, got in zip(*results, strict=True):
        assert got.dtype == exact.dtype
        assert (got - exact).norm() < 0.2 * exact.norm()


def test_every_linear_but_the_head_is_replaced() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(16, 16, bias=False)), "lm_head": nn.Linear(16, 4, bias=False)})
    weight = model["a"][0].weight  # type: ignore[index]
    fake_quantize(model, "plain")
    assert isinstance(model["a"][0], FakeQuantizedLinear)  # type: ignore[index]
    assert model["a"][0].weight is weight  # type: ignore[index]
    assert isinstance(model["lm_head"], nn.Linear)
