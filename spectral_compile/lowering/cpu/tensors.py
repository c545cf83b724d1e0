"""Tensors as the kernels take them: layouts, element types, pointers."""

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32)  # what kernels read and write; fp16 goes through fp32
_SERIAL = 32768  # elements; the grain size of torch's own kernels


def with_contiguous_rows(x: Tensor) -> tuple[Tensor, bool]:
    """x or its transpose, whichever has contiguous rows, and whether it is the latter; else a copy of x."""
    x = readable(x)
    if x.stride(1) == 1:
        return x, False
    if x.stride(0) == 1:
        return x.t(), True
    return x.contiguous(), False


def readable(x: Tensor) -> Tensor:
    """x in an element type that kernels read."""
    return x if x.dtype in DTYPES else x.to(torch.float32)


def threads(work: Tensor) -> int:
    """How many threads to use: one where starting others costs more than it saves."""
    return torch.get_num_threads() if work.numel() > _SERIAL else 1


def fp32(t: Tensor) -> Tensor:
    """Contiguous fp32, as vectors and small factors are read."""
    return t.to(torch.float32).contiguous()


def pointer(t: Tensor | None) -> int | None:
    """Where the elements are; None for no tensor."""
    return None if t is None else t.data_ptr()
