"""Three forms of a product, read as one."""

import torch
from torch import fx

from spectral_compile.passes.product import Product, behind_transpose, read_product

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


def test_addmm_of_a_matrix_is_not_such_a_product() -> None:
    graph, (matrix, a, b) = placeholders((4, 2), (4, 8), (8, 2))
    assert read_product(graph.call_function(aten.addmm.default, (matrix, a, b))) is None


def test_split_mm_is_read_back() -> None:
    graph, (a, b, left, right) = placeholders((4, 8), (8, 2), (4,), (2,))
    arguments = (a, b, left, right, torch.float32)
    split = graph.call_function(torch.ops.spectral.split_mm.default, arguments)
    assert read_product(split) == Product(a, b, left, right)


def test_transposes_cancel_in_pairs() -> None:
    graph, (x,) = placeholders((4, 8))
    once = graph.call_function(aten.permute.default, (x, [1, 0]))
    twice = graph.call_function(aten.t.default, (once,))
    view = graph.call_function(aten.view.default, (once, [32]))
    assert behind_transpose(x) == (x, False)
    assert behind_transpose(once) == (x, True)
    assert behind_transpose(twice) == (x, False)
    assert behind_transpose(view) == (view, False)
