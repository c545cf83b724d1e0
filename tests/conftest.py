"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# No deadline: the machine may be busy. No chance: a failure today is a failure tomorrow.
settings.register_profile("spectral", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("spectral")

# As many threads as there are processors, over all of the processes that run tests at once.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test draws the same numbers alone as after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _subnormals() -> Iterator[None]:
    """What a test sets for its process must not be felt by the next: numbers below 2**-126 stay what they are."""
    yield
    kept = (torch.tensor(1e-40) * 1).item() != 0
    torch.set_flush_denormal(False)
    assert kept, "this test left the processor flushing subnormal numbers to zero"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """No test runs code that was compiled for another."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
