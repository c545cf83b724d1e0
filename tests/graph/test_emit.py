"""Inserted nodes: metadata on every one, equal ones once, and what must not be shared is not."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from spectral_compile import MeanCenter
from spectral_compile._torch import select_decomp_table
from spectral_compile.graph.emit import Emitter
from tests.capture import calls, capture, count

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default


def traced(shape: tuple[int, ...] = (4, 6)) -> tuple[fx.Graph, fx.Node]:
    """A graph with one relu, its nodes with fake values."""
    mode = torch._subclasses.FakeTensorMode()
    graph = fx.Graph()
    x = graph.placeholder("x")
    with mode:
        x.meta["val"] = torch.empty(shape)
    y = graph.call_function(aten.relu.default, (x,))
    y.meta.update(val=x.meta["val"], partitioner_tag="is_forward", seq_nr=7, recompute=None, stack_trace="here")
    graph.output(y)
    return graph, y


def test_a_call_comes_after_its_operands_with_value_and_the_metadata_of_like() -> None:
    graph, y = traced()
    node = Emitter(graph).call(convert, (y, torch.bfloat16), like=y)
    graph.lint()
    assert list(graph.nodes).index(node) == list(graph.nodes).index(y) + 1
    assert node.meta["val"].dtype == torch.bfloat16
    assert node.meta["val"].shape == (4, 6)
    assert {key: node.meta[key] for key in ("partitioner_tag", "seq_nr", "stack_trace")} == {
        "partitioner_tag": "is_forward",
        "seq_nr": 7,
        "stack_trace": "here",
    }


def test_equal_calls_are_one_also_behind_equal_views_and_different_ones_are_not() -> None:
    graph, y = traced()
    emit = Emitter(graph)
    views = []
    for _ in range(2):
        with graph.inserting_before(graph.output_node()):
            views.append(graph.call_function(aten.view.default, (y, [6, 4])))
        views[-1].meta["val"] = y.meta["val"].view(6, 4)
    first, second = (emit.call(aten.neg.default, (view,), like=y) for view in views)
    assert first is second
    assert emit.call(aten.neg.default, (y,), like=y) is not first
    assert emit.call(aten.sum.dim_IntList, (y, [0]), like=y) is not emit.call(aten.sum.dim_IntList, (y, [1]), like=y)
    assert emit.call(aten.mul.Scalar, (y, 1), like=y) is not emit.call(aten.mul.Scalar, (y, 1.0), like=y)
    graph.lint()


def test_a_random_node_is_not_taken_for_its_twin() -> None:
    graph, y = traced()
    emit = Emitter(graph)
    noise = []
    for _ in range(2):
        with graph.inserting_before(graph.output_node()):
            noise.append(graph.call_function(aten.rand_like.default, (y,)))
        noise[-1].meta["val"] = y.meta["val"]
    first, second = (emit.call(aten.neg.default, (node,), like=y) for node in noise)
    assert first is not second


def test_calls_of_two_checkpointed_regions_are_not_shared() -> None:
    graph, y = traced()
    emit = Emitter(graph)
    made = []
    for region in (1, 2):
        y.meta["ac_graph_id"] = region
        made.append(emit.call(aten.neg.default, (y,), like=y))
    assert made[0] is not made[1]


def test_replace_refuses_another_shape_or_dtype() -> None:
    graph, y = traced()
    with pytest.raises(AssertionError, match="became"):
        Emitter(graph).replace(y, convert, (graph.find_nodes(op="placeholder")[0], torch.bfloat16))


def test_replace_hands_over_all_uses_and_erases() -> None:
    graph, y = traced()
    new = Emitter(graph).replace(y, aten.neg.default, (graph.find_nodes(op="placeholder")[0],))
    graph.lint()
    assert graph.output_node().args == (new,)
    assert count(graph, "aten.relu") == 0
    assert new.meta["seq_nr"] == 7


def test_a_node_whose_value_cannot_be_told_is_refused() -> None:
    graph, y = traced()
    assert Emitter(graph).call(aten.arange.default, (4,), like=y).meta["val"].shape == (4,)
    del y.meta["val"]
    with pytest.raises(AssertionError, match="no fake tensor to compute the value"):
        Emitter(graph).call(aten.arange.default, (5,), like=y)


class WeightLeft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.w @ x.T


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("centred", [{}, {"gradients": False}, {"activations": False}])
def test_inductor_has_code_for_every_new_node(centred: dict[str, bool], dynamic: bool) -> None:
    """Decompositions are over when passes run: what has a decomposition and no lowering does not compile."""
    from torch._inductor.lowering import lowerings

    without_code = select_decomp_table().keys() - lowerings.keys()
    assert aten.full_like.default in without_code
    for model in (nn.Linear(32, 16), WeightLeft()):
        graphs = capture(model, inputs(), passes=[MeanCenter(**centred)], dynamic=dynamic).graphs
        old = {node.name for node in graphs["joint"].nodes}
        new = {node.target for node in graphs["quantize_fp4"].nodes if node.name not in old}
        assert torch.ops.spectral.scaled_mm.default in new
        assert not new & without_code


class Attention(nn.Module):
    """q, k and v of one input, each used once, under checkpointing or not."""

    def __init__(self, policy: Any = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.policy = policy

    def attend(self, x: Tensor) -> Tensor:
        return torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        if self.policy is None:
            return self.attend(x)
        return checkpoint(self.attend, x, use_reentrant=False, **self.policy)


def inputs() -> Tensor:
    return torch.randn(64, 32, requires_grad=True)


@pytest.mark.parametrize("recipe", ["averis", "nvfp4-plain", "identity"])
def test_every_new_node_has_value_tag_and_sequence_number(recipe: str) -> None:
    graphs = capture(Attention(), inputs(), recipe=recipe).graphs
    old = {node.name for node in graphs["joint"].nodes}
    new = [node for node in graphs["quantize_fp4"].nodes if node.name not in old and node.op == "call_function"]
    assert len(new) > 40
    for node in new:
        assert "val" in node.meta, node.name
        assert node.meta["partitioner_tag"] in ("is_forward", "is_backward"), node.name
        assert "seq_nr" in node.meta, node.name


@pytest.mark.parametrize("recipe", ["averis", "nvfp4-plain", "identity"])
def test_nothing_in_the_forward_reads_anything_of_the_backward(recipe: str) -> None:
    for node in capture(Attention(), inputs(), recipe=recipe).final.nodes:
        if node.meta.get("partitioner_tag") == "is_forward":
            for operand in node.all_input_nodes:
                assert operand.meta["partitioner_tag"] == "is_forward", (operand.name, node.name)


def test_under_checkpointing_all_that_is_forward_is_recomputed() -> None:
    graph = capture(Attention({}), inputs()).final
    for node in graph.nodes:
        if "spectral" in str(node.target) and node.meta["partitioner_tag"] == "is_forward":
            assert node.meta["recompute"] == CheckpointPolicy.PREFER_RECOMPUTE, node.name
            assert "ac_graph_id" in node.meta, node.name


def test_selective_checkpointing_that_saves_products_saves_no_operands() -> None:
    def save_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        products = (aten.mm.default, aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, save_products)
    graph = capture(Attention({"context_fn": contexts}), inputs()).final
    forward = [node for node in graph.nodes if node.meta.get("partitioner_tag") == "is_forward"]
    products = calls(graph, "spectral.scaled_mm")[:3]
    assert {node.meta["recompute"] for node in products} == {CheckpointPolicy.MUST_SAVE}
    quantized = [node for node in forward if str(node.target) == "spectral.quantize.default"]
    assert quantized
    assert {node.meta["recompute"] for node in quantized} == {CheckpointPolicy.PREFER_RECOMPUTE}


def test_rounding_up_a_number_adds_no_node() -> None:
    graph, y = traced()
    before = len(graph.nodes)
    emit = Emitter(graph)
    assert [emit.round_up(extent, 16, like=y) for extent in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert len(graph.nodes) == before


def test_rounding_up_a_symbol_is_done_in_the_graph() -> None:
    seen = []

    def keep(graph: fx.Graph, example: Any) -> None:
        emit = Emitter(graph)
        (x,) = [n for n in graph.find_nodes(op="placeholder") if isinstance(n.meta["val"], Tensor)]
        rounded = emit.round_up(emit.size(x, 0), 16, like=x)
        seen.append((int(rounded.meta["val"].node.hint), emit.round_up(emit.size(x, 0), 16, like=x) is rounded))

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        keep(gm.graph, inputs)
        return gm.forward

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(torch.relu, backend=aot_autograd(fw_compiler=backend), dynamic=True)
    compiled(torch.randn(33, 5))
    assert seen == [(48, True)]


def test_dead_nodes_are_not_reused_once_they_are_forgotten() -> None:
    graph, y = traced()
    emit = Emitter(graph)
    node = emit.call(convert, (y, torch.bfloat16), like=y)
    assert emit.call(convert, (y, torch.bfloat16), like=y) is node
    graph.eliminate_dead_code()
    emit.forget_dead()
    again = emit.call(convert, (y, torch.bfloat16), like=y)
    assert again is not node
    assert again in list(graph.nodes)
