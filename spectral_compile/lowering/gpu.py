"""The Triton kernels put behind the spectral:: operators, once there is a model on a GPU."""

import functools
import importlib.util

import torch


def has_triton() -> bool:
    """Whether it is installed. Without it operators run as plain torch, with the same numbers."""
    return importlib.util.find_spec("triton") is not None


def prepare(device: torch.device) -> None:
    """Have operators on `device`, a GPU, computed by kernels."""
    if has_triton():
        _register()
        from spectral_compile.lowering.triton.multiply import lost_blocks

        lost_blocks(device)  # now: what is allocated while a CUDA graph is captured belongs to the graph


@functools.cache
def _register() -> None:
    from spectral_compile.lowering.triton import products, quantizers

    quantizers.register()
    products.register()
