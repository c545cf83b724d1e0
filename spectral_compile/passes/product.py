"""The three forms a product takes on its way through the passes, read as one."""

from dataclasses import dataclass

import torch
from torch import fx

aten = torch.ops.aten
spectral = torch.ops.spectral


@dataclass(frozen=True)
class Product:
    """a [m, k] @ b [k, n] + left (outer) right, as `spectral::split_mm` has it."""

    a: fx.Node
    b: fx.Node
    left: fx.Node | None = None
    right: fx.Node | None = None


def read_product(node: fx.Node) -> Product:
    """The product that mm, addmm (of a bias) or split_mm computes."""
    if node.target is aten.mm.default:
        return Product(*node.args)  # type: ignore[arg-type]
    if node.target is spectral.split_mm.default:
        return Product(*node.args[:4])  # type: ignore[arg-type]
    bias, a, b = node.args
    return Product(a, b, right=bias)  # type: ignore[arg-type]
