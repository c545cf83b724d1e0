"""Triton's products: their numbers, under the interpreter; and what they compile to, for GPUs that are not here."""

from collections.abc import Callable


def test_numbers(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted("interpreted_products.py")
