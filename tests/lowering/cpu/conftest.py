"""The kernels in two builds: for this machine, and in the portable form for a narrower one."""

import platform
from collections.abc import Iterator

import pytest
import torch

from spectral_compile._torch import load_shared_library
from spectral_compile.lowering.cpu import build

_PORTABLE = ("-DSPECTRAL_PORTABLE", *(["-march=x86-64-v3"] if platform.machine() == "x86_64" else []))


@pytest.fixture(params=["native", "portable"], scope="session")
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with each build behind the operators.

    On one thread, but for tests that say otherwise: on a busy machine threads wait for each other.
    """
    build.prepare()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    native = build._library
    if request.param == "portable":
        build._library = build.declare(load_shared_library(build._source(), (*build._FLAGS, *_PORTABLE)))
    yield
    build._library = native
    torch.set_num_threads(threads)
