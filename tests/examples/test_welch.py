"""Welch's test against values from tables and from samples with a known answer."""

import random

import pytest

from examples.welch import compare, two_sided


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [  # two-sided critical values of Student's t, as every table has them
        (12.706, 1, 0.05),
        (2.776, 4, 0.05),
        (2.306, 8, 0.05),
        (3.355, 8, 0.01),
        (1.962, 1000, 0.05),
        (0.0, 5, 1.0),
    ],
)
def test_probability_agrees_with_the_tables(t: float, freedom: float, p: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(p, rel=2e-3)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


def test_difference_of_two_samples() -> None:
    found = compare([1.0, 2.0, 3.0], [4.0, 6.0])  # variances 1 and 2, squared errors 1/3 and 1
    assert found is not None
    assert found.difference == pytest.approx(-3)
    assert found.error == pytest.approx((4 / 3) ** 0.5)
    assert found.t == pytest.approx(-3 / (4 / 3) ** 0.5)
    assert found.freedom == pytest.approx((4 / 3) ** 2 / ((1 / 3) ** 2 / 2 + 1 / 1))
    assert 0.05 < found.p < 0.2


def test_of_equal_means_as_many_differ_as_p_says() -> None:
    normal = random.Random(0).gauss
    found = [compare([normal(0, 1) for _ in range(5)], [normal(0, 3) for _ in range(5)]) for _ in range(1000)]
    assert sum(one is not None and one.p < 0.1 for one in found) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("first", [[1.0], [1.0, 1.0, 1.0], []])
def test_samples_without_luck_say_nothing(first: list[float]) -> None:
    assert compare(first, [1.0, 2.0]) is None
    assert compare([1.0, 2.0], first) is None
