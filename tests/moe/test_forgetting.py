"""OP and BWT by hand and by their sums written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.moe import backward_transfer, overall_performance

NAN = float("nan")


def test_by_hand():
    R = torch.tensor([[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.6, 0.9, 0.5]])
    assert overall_performance(R).item() == pytest.approx(2 / 3)
    assert backward_transfer(R).item() == pytest.approx((-0.3 + 0.1) / 2)
    assert overall_performance(torch.tensor([[0.4]])).item() == pytest.approx(0.4)


@given(st.integers(2, 6), st.data())
def test_by_their_sums(tasks, data):
    R = [[data.draw(st.floats(-1, 1)) for _ in range(tasks)] for _ in range(tasks)]
    op = sum(R[tasks - 1][j] for j in range(tasks)) / tasks
    bwt = sum(R[tasks - 1][i] - R[i][i] for i in range(tasks - 1)) / (tasks - 1)
    found = torch.tensor(R, dtype=torch.float64)
    assert overall_performance(found).item() == pytest.approx(op)
    assert backward_transfer(found).item() == pytest.approx(bwt)
    last, diagonal = R[-1], [R[i][i] for i in range(tasks)]
    # OP is what was learned, plus what became of it
    assert op == pytest.approx((sum(diagonal) + (tasks - 1) * bwt) / tasks, abs=1e-9), last


def test_leading_axes_are_a_batch():
    R = torch.rand(5, 2, 4, 4)
    assert overall_performance(R).shape == backward_transfer(R).shape == (5, 2)
    assert backward_transfer(R)[3, 1] == backward_transfer(R[3, 1])


@pytest.mark.parametrize("measure", [overall_performance, backward_transfer])
def test_bad_input(measure):
    for shape in [(3,), (2, 3), (0, 0)]:
        with pytest.raises(ValueError, match=r"\[\.\.\., T, T\]"):
            measure(torch.zeros(shape))
    R = torch.eye(3)
    R[-1, 0] = NAN
    with pytest.raises(ValueError, match="NaN"):
        measure(R)


def test_a_task_that_was_not_measured_when_learned():
    R = torch.eye(3)
    R[0, 0] = NAN
    assert overall_performance(R).item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="diagonal"):
        backward_transfer(R)
    with pytest.raises(ValueError, match="T of 2 or more"):
        backward_transfer(torch.eye(1))
