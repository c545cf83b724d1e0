"""spectral::quantize_pair: two calls of spectral::quantize, and what its fake kernel promises."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes
from tests.ops.operands import EVERY_FORMAT, all_equal, arguments, square

op = torch.ops.spectral.quantize_pair.default
quantize = torch.ops.spectral.quantize.default
SEED = torch.tensor(5)


def both(x: Tensor, row: dict[str, Any], col: dict[str, Any]) -> tuple[Any, ...]:
    """The pair's arguments, from those of `arguments`."""
    sides = (arguments(x, axis=1, **row), arguments(x, axis=0, **col))
    return (x, *(value for side in sides for value in (*side[1:6], *side[7:], None)))


def test_it_is_two_quantisations_each_in_its_own_way() -> None:
    x, mean, rows = torch.randn(33, 50), torch.randn(50), (torch.arange(33) % 3 > 0).float()
    row: dict[str, Any] = {"format": "nvfp4", "scale": "four_six", "tile_rows": 16, "mean": mean, "rows": rows}
    col: dict[str, Any] = {"format": "mxfp4", "scale": "ceil", "hadamard": True, "seed": SEED, "stream": 3}
    for a, b in ((row, col), (col, row)):
        expected = (*quantize(*arguments(x, axis=1, **a)), *quantize(*arguments(x, axis=0, **b)))
        assert all_equal(op(*both(x, a, b)), expected)


def test_each_takes_its_own_largest_magnitude() -> None:
    x = torch.randn(20, 40)
    amax = [torch.tensor(3.0), torch.tensor(5.0)]
    given = list(both(x, {}, {}))
    given[9], given[18] = amax
    expected = (*quantize(*arguments(x, axis=1), amax[0]), *quantize(*arguments(x, axis=0), amax[1]))
    assert all_equal(op(*given), expected)


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_the_fake_kernel_agrees(format: str) -> None:
    row, col = {"format": format, "tile_rows": square(format)}, {"format": "mxfp4", "hadamard": True, "seed": SEED}
    for shape in ((17, 35), (1, 16), (40, 1), (0, 16), (3, 0)):
        assert_fake_agrees(op, *both(torch.randn(shape), row, col))
    for x in (torch.randn(32, 64).t(), torch.randn(34, 70)[::2, ::2].bfloat16()):
        assert_fake_agrees(op, *both(x, col, row))


def test_one_trace_serves_all_sizes() -> None:
    def quantise(x: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = op(*both(x, {}, {"format": "mxfp4"}))
        return (*results[:2], *results[3:5])

    assert_one_trace_serves_all_sizes(quantise, (torch.randn(40, 70),), (torch.randn(35, 96),))


def test_opcheck() -> None:
    x, mean, rows = torch.randn(20, 40), torch.randn(40), torch.ones(20)
    opcheck(op, both(x, {"mean": mean, "rows": rows, "seed": SEED}, {"tile_rows": 16}))


def test_what_there_is_no_quantiser_for_is_refused() -> None:
    for x in (torch.zeros(16, 16), torch.zeros(16, 16, device="meta")):
        with pytest.raises(ValueError, match="stochastic"):
            op(*both(x, {}, {"scale": "four_six", "seed": SEED}))
