"""Three forms of a product, read as one."""

import torch
from torch import fx

from spectral_compile.passes.product import Product, read_product

aten = torch.ops.aten


def placeholders(*shapes: tuple[int, ...]) -> tuple[fx.Graph, list[fx.Node]]:
    graph = fx.Graph()
    nodes = [graph.placeholder(f"p{i}") for i in range(len(shapes))]
    for node, shape in zip(nodes, shapes, strict=True):
        node.meta["val"] = torch.empty(shape)
    return graph, nodes


def test_mm_has_no_rank_one_term() -> None:
    graph, (a, b) = placeholders((4, 8), (8, 2))
    assert read_product(graph.call_function(aten.mm.default, (a, b))) == Product(a, b)


def test_addmms_bias_is_the_right_vector() -> None:
    graph, (bias, a, b) = placeholders((2,), (4, 8), (8, 2))
    assert read_product(graph.call_function(aten.addmm.default, (bias, a, b))) == Product(a, b, right=bias)


def test_split_mm_is_read_back() -> None:
    graph, (a, b, left, right) = placeholders((4, 8), (8, 2), (4,), (2,))
    arguments = (a, b, left, right, torch.float32)
    split = graph.call_function(torch.ops.spectral.split_mm.default, arguments)
    assert read_product(split) == Product(a, b, left, right)
