"""A malformed graph is caught after the pass that left it so."""

import pytest
import torch
from torch import fx, nn

from spectral_compile.graph.verify import holds_spectral_operators, verify, without_value
from tests.capture import capture

aten = torch.ops.aten


def small_graph() -> tuple[fx.Graph, fx.Node, fx.Node]:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 2)
    y = graph.call_function(aten.relu.default, (x,))
    y.meta["val"] = torch.empty(2, 2)
    graph.output(y)
    return graph, x, y


def test_a_sound_graph_passes() -> None:
    verify(small_graph()[0], after="mine")


def test_use_before_definition_names_the_pass() -> None:
    graph, x, y = small_graph()
    late = graph.call_function(aten.neg.default, (x,))  # at the end, after its user
    late.meta["val"] = torch.empty(2, 2)
    y.args = (late,)
    with pytest.raises(AssertionError, match="pass mine left a malformed graph"):
        verify(graph, after="mine")


def test_a_node_without_a_value_is_refused() -> None:
    graph, _, y = small_graph()
    del y.meta["val"]
    with pytest.raises(AssertionError, match="pass mine left relu_default without"):
        verify(graph, after="mine")
    verify(graph, after="mine", known=without_value(graph))  # it was so before


def test_our_operators_operands_need_values_too() -> None:
    graph, x, y = small_graph()
    with graph.inserting_after(y):
        mean = graph.call_function(torch.ops.spectral.token_mean.default, (x, 1))
    mean.meta["val"] = torch.empty(2)
    del x.meta["val"]
    with pytest.raises(AssertionError, match="token_mean_default reads a node without"):
        verify(graph, after="mine")


def test_a_rewritten_graph_is_known_by_its_operators() -> None:
    graphs = capture(nn.Linear(16, 16), torch.randn(4, 16)).graphs
    assert not holds_spectral_operators(graphs["joint"])
    assert holds_spectral_operators(graphs["quantize_fp4"])
