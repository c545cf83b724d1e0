"""The three forms a product takes on its way through the passes, read as one."""

from dataclasses import dataclass

import torch
from torch import fx

from spectral_compile.graph.dataflow import is_transpose

aten = torch.ops.aten
spectral = torch.ops.spectral


@dataclass(frozen=True)
class Product:
    """a [m, k] @ b [k, n] + left [m] (outer) right [n]; what is absent of the last term counts as ones, or as zero."""

    a: fx.Node
    b: fx.Node
    left: fx.Node | None = None
    right: fx.Node | None = None


def read_product(node: fx.Node) -> Product | None:
    """The product that mm, addmm or split_mm computes; None where addmm adds more than one row."""
    if node.target is aten.mm.default:
        return Product(*node.args)  # type: ignore[arg-type]
    if node.target is spectral.split_mm.default:
        return Product(*node.args[:4])  # type: ignore[arg-type]
    addend, a, b = node.args
    assert isinstance(addend, fx.Node)
    return Product(a, b, right=addend) if addend.meta["val"].dim() == 1 else None  # type: ignore[arg-type]


def behind_transpose(node: fx.Node) -> tuple[fx.Node, bool]:
    """The matrix behind any number of transposes, and whether an odd number stood before it."""
    transposed = False
    while is_transpose(node):
        node, transposed = node.args[0], not transposed  # type: ignore[assignment]
    return node, transposed
