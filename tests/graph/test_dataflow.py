"""Weights told from activations, and tensors recognised behind views and casts."""

import operator

import torch
from torch import Tensor, fx, nn

from spectral_compile.graph.dataflow import Origin, is_transpose, origins, root
from tests.capture import calls, capture

aten = torch.ops.aten


def joint(model: nn.Module, *inputs: Tensor) -> fx.Graph:
    return capture(model, *inputs, recipe="identity").graphs["joint"]


def test_origin_of_parameters_activations_and_what_mixes_them() -> None:
    graph = joint(nn.Linear(8, 4), torch.randn(5, 8))
    names = {0: "weight", 1: "bias"}
    (addmm,) = calls(graph, "aten.addmm")
    bias, x, weight = addmm.args
    found = origins(graph, names)
    assert found[weight] == Origin(frozenset({"weight"}))
    assert found[weight].is_weight
    assert found[bias].is_weight
    assert found[x] == Origin(activation=True)
    assert found[addmm] == Origin(frozenset({"weight", "bias"}), activation=True, product=True)
    assert not found[addmm].is_weight


def test_only_what_depends_on_a_tangent_is_a_gradient() -> None:
    graph = joint(nn.Linear(8, 4), torch.randn(5, 8))
    found = origins(graph, {})
    (addmm,), (wgrad,) = calls(graph, "aten.addmm"), calls(graph, "aten.mm")
    assert not found[addmm].gradient
    assert found[wgrad].gradient


def test_constants_are_neither_weight_nor_activation() -> None:
    graph = fx.Graph()
    constant = graph.call_function(aten.arange.default, (4,))
    assert origins(graph, {})[constant] == Origin()
    assert not Origin().is_weight


def test_root_looks_through_whole_views_and_casts_but_not_through_slices() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    cast = graph.call_function(torch.ops.prims.convert_element_type.default, (x, torch.bfloat16))
    view = graph.call_function(aten.view.default, (cast, [4, 4]))
    transposed = graph.call_function(aten.permute.default, (view, [1, 0]))
    part = graph.call_function(aten.slice.Tensor, (x, 0, 0, 2))
    part_seen = graph.call_function(aten.permute.default, (part, [1, 0]))
    item = graph.call_function(operator.getitem, (x, 0))
    assert root(transposed) is x
    assert root(part_seen) is part
    assert root(item) is item


def test_is_transpose_means_a_matrix_the_other_way_round() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert is_transpose(graph.call_function(aten.permute.default, (x, [1, 0])))
    assert is_transpose(graph.call_function(aten.t.default, (x,)))
    assert not is_transpose(graph.call_function(aten.permute.default, (x, [0, 1])))
    assert not is_transpose(graph.call_function(aten.permute.default, (x, [0, 2, 1])))
    assert not is_transpose(x)
