"""What integration tests share."""

import pytest

from spectral_compile.pipeline import observe


@pytest.fixture
def plans():
    """The plans of all graphs compiled during the test."""
    seen = []
    stop = observe(lambda stage, graph, plan: seen.append(plan) if stage == "joint" else None)
    yield seen
    stop()
