"""Values that dumped files run on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectral_compile.report import made_up


def evaluated(text: str) -> Any:
    return eval(text, {"torch": torch, "inf": math.inf, "nan": math.nan})


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, 4),
        torch.empty(0, 4),
        torch.empty(()),
        torch.empty(3, 4, dtype=torch.bfloat16).t(),
        torch.empty(2, 3, 4).permute(2, 0, 1),
        torch.empty(4, 6)[:, ::2],
        torch.empty(1, 5).expand(3, 5),
        torch.empty(3, 4, dtype=torch.int64).t(),
        torch.empty(6, dtype=torch.float8_e4m3fn),
        torch.empty(2, 3, dtype=torch.complex64),
        torch.empty(5, dtype=torch.bool),
    ],
    ids=lambda value: f"{value.dtype} {tuple(value.shape)} {value.stride()}",
)
def test_a_tensor_of_the_same_type_shape_and_strides(value: Tensor) -> None:
    got = evaluated(made_up.like(value))
    assert (got.dtype, got.shape, got.stride()) == (value.dtype, value.shape, value.stride())


@pytest.mark.parametrize("value", [3, 2.5, True, None])
def test_numbers_are_as_they_were(value: object) -> None:
    assert evaluated(made_up.like(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, math.inf, -0.0]),
        torch.tensor(7),
        torch.tensor([[True, False]]),
        torch.tensor([0.1], dtype=torch.bfloat16),
        nn.Parameter(torch.ones(2, 2)),
    ],
    ids=str,
)
def test_small_constants_are_written_out(value: Tensor) -> None:
    got = evaluated(made_up.constant(value))
    assert got.dtype == value.dtype
    assert torch.equal(got, value)


def test_what_is_not_written_out_says_so() -> None:
    large = made_up.constant(torch.ones(65))
    assert large.endswith("# made up")
    assert evaluated(large).shape == (65,)
    assert made_up.constant(torch.ones(3, device="meta")).endswith("# made up")
    other = made_up.constant(object())
    assert evaluated(other) is None
    assert other.endswith("# in the graph: object")
