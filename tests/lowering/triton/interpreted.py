"""Triton's kernels without a GPU: run by its interpreter, slowly, on CPU tensors."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Run]:
    """interpreted("quantize", *arguments): what the operator's GPU kernel returns.

    Whether a kernel is compiled or interpreted is decided when it is decorated, and so for the functions that it calls
    and those of Triton's own library: once in a process. So the kernels live in a process of their own, where
    TRITON_INTERPRET was set before Triton was imported; in this one other tests compile.
    """
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_interpret) as process:

        def run(name: str, *arguments: Any) -> tuple[Tensor, ...]:
            return _load(process.submit(_run, name, _saved(arguments)).result())

        yield run


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _run(name: str, arguments: bytes) -> bytes:
    """What the kernel writes into tensors as the operator's fake lays them out, full of garbage before."""
    import numpy as np

    from spectral_compile.lowering.triton.quantizers import kernels
    from spectral_compile.ops.library import fake_of

    given = _load(arguments)
    out = fake_of(name)(*given)
    out = (out,) if isinstance(out, Tensor) else out
    for result in out:
        result.view(torch.uint8).fill_(0xA5) if result.dim() else result.fill_(-77)
    with np.errstate(all="ignore"):
        kernels()[name](*given, out=out)
    return _saved(out)


def _saved(values: Any) -> bytes:
    """As bytes, strides and all."""
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def _load(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
