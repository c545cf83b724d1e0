"""Declaring a spectral:: operator: schema, reference, fake."""

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library, register_fake

NAMESPACE = "spectral"
_library = Library(NAMESPACE, "DEF")

Kernel = Callable[..., Any]


def declare(schema: str, *, reference: Kernel, fake: Kernel) -> None:
    """Register `spectral::<schema>`: functional, without aliasing; the reference serves every device.

    Inductor may hand over inputs in any layout, so kernels read strides; their outputs are always contiguous.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def implement(name: str, kernel: Kernel, dispatch_key: str) -> None:
    """Give one device (dispatch key "CPU", "CUDA") a faster kernel with the same numbers."""
    _library.impl(name, kernel, dispatch_key)
