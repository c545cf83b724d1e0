"""Turns and ratios, on made-up arms and numbers."""

import math

import torch
from torch import Tensor

from benchmarks.bench_errors import reason
from benchmarks.bench_timing import Spread, StepTimes, in_turns, orders, paired_difference, paired_ratio, summary


class Recorder:
    """An arm that writes down what it is asked for."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log

    def forward(self) -> Tensor:
        self.log.append((self.name, "forward"))
        return torch.ones(())

    def backward(self, output: Tensor) -> None:
        self.log.append((self.name, "backward"))

    def zero_grad(self) -> None:
        self.log.append((self.name, "zero_grad"))


def test_every_arm_takes_one_whole_step_a_round_and_the_first_round_does_not_count() -> None:
    log: list[tuple[str, str]] = []
    times = in_turns({name: Recorder(name, log) for name in "abc"}, rounds=4)
    assert {name: len(steps) for name, steps in times.items()} == {"a": 4, "b": 4, "c": 4}
    steps = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert all([part for _, part in step] == ["forward", "backward", "zero_grad"] for step in steps)
    assert all(len({name for name, _ in step}) == 1 for step in steps)
    turns = [step[0][0] for step in steps]
    assert [sorted(turns[i : i + 3]) for i in range(0, 15, 3)] == [["a", "b", "c"]] * 5
    assert all(step.forward + step.backward <= step.step for step in times["a"])


def test_the_order_changes_and_repeats_with_its_seed() -> None:
    first = list(orders("abcd", 30, seed=0))
    assert first == list(orders("abcd", 30, seed=0))
    assert {order[0] for order in first} == set("abcd")


def test_ratios_are_paired_by_round() -> None:
    # The machine slows down threefold in the last rounds: the ratio of two arms does not.
    slow, fast = [2.0, 2.0, 6.0, 6.0, 6.0], [1.0, 1.0, 3.0, 3.0, 3.0]
    assert paired_ratio(slow, fast) == Spread(2.0, 2.0, 2.0)
    times = {"slow": [StepTimes(t, t, 2 * t) for t in slow], "fast": [StepTimes(t, 1.0, t + 1) for t in fast]}
    rows = summary(times, baseline="fast")
    assert rows["slow"]["forward"]["ratio"]["median"] == 2
    assert rows["slow"]["forward"]["rounds"] == slow
    assert rows["slow"]["step"]["seconds"] == {"median": 12.0, "low": 4.0, "high": 12.0}
    assert rows["fast"]["backward"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert summary(times, baseline="absent")["slow"]["step"]["ratio"] is None


def test_differences_are_paired_by_round() -> None:
    assert paired_difference([5.0, 9.0, 2.0], [4.0, 1.0, 1.0]) == 1.0


def test_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_reason_says_where_when_the_error_says_nothing() -> None:
    try:
        assert math.pi == 3
    except AssertionError as error:
        text = reason(error)
    assert "AssertionError" in text
    assert "test_a_reason_says_where" in text
    assert "\n" not in reason(ValueError("first line\nsecond line"))
    assert reason(ValueError("first line\nsecond line")) == "ValueError: first line"
