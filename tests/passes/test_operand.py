"""Operands behind transposes; one quantisation for all who read a tensor along an axis; values as the operand lies."""

import pytest
import torch
from torch import Tensor, fx, nn

from spectral_compile import formats
from spectral_compile._torch import FakeTensorMode
from spectral_compile.graph.emit import Emitter
from spectral_compile.passes.operand import behind_transpose, quantize, rounded, transpose
from spectral_compile.plan import OperandPlan

aten = torch.ops.aten
spectral = torch.ops.spectral

WEIGHT = OperandPlan("weight", "nvfp4", "amax", tile_rows=16)
ACTIVATION = OperandPlan("activation", "mxfp4", "even")


def graph_of(*shapes: tuple[int, ...]) -> tuple[fx.Graph, list[fx.Node]]:
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(f"p{i}") for i in range(len(shapes))]
    for node, shape in zip(nodes, shapes, strict=True):
        with mode:
            node.meta["val"] = torch.empty(shape)
    return graph, nodes


def run(graph: fx.Graph, result: fx.Node | tuple[fx.Node, ...], *inputs: Tensor) -> Tensor:
    graph.output(result)
    graph.lint()
    return fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*inputs)


def test_transposes_cancel_in_pairs() -> None:
    graph, (x,) = graph_of((4, 8))
    once = graph.call_function(aten.permute.default, (x, [1, 0]))
    twice = graph.call_function(aten.t.default, (once,))
    view = graph.call_function(aten.view.default, (once, [32]))
    assert behind_transpose(x) == (x, False)
    assert behind_transpose(once) == (x, True)
    assert behind_transpose(twice) == (x, False)
    assert behind_transpose(view) == (view, False)


@pytest.mark.parametrize("plan", [WEIGHT, ACTIVATION, OperandPlan("weight", "identity")], ids=lambda p: p.format)
@pytest.mark.parametrize("k_axis", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_rounded_values_lie_as_the_operand_does(plan: OperandPlan, k_axis: int, transposed: bool) -> None:
    graph, (x,) = graph_of((20, 37))
    emit, value = Emitter(graph), torch.randn(20, 37)
    operand = transpose(emit, x, transposed)
    got = run(graph, rounded(emit, plan, operand, k_axis, x, None), value)
    lies = value.t() if transposed else value
    if plan.format == "identity":
        assert torch.equal(got, lies)
        return
    q = formats.quantize(lies, plan.format, axis=k_axis, scale=plan.scale, tile_rows=plan.tile_rows)
    assert torch.equal(got, formats.dequantize(q, plan.format, lies.shape[k_axis], k_axis))


def test_square_blocks_are_stored_as_the_weight_lies_unless_they_are_transformed() -> None:
    graph, (x,) = graph_of((32, 48))
    emit = Emitter(graph)
    (along, k_last), (across, k_first) = (quantize(emit, WEIGHT, x, axis, x, None) for axis in (1, 0))
    assert along == across
    assert (k_last, k_first) == (True, False)
    mixed = emit.call(spectral.hadamard.default, (x, 0), like=x)
    codes, k_last = quantize(emit, WEIGHT, mixed, 0, x, None)
    assert k_last
    assert codes != along
    assert codes[0].args[0].args[8] is True


def test_what_was_done_to_the_operand_is_done_by_the_quantiser() -> None:
    graph, (x, mean) = graph_of((33, 20), (20,))
    emit = Emitter(graph)
    centred = emit.call(spectral.center.default, (x, mean, None), like=x)
    operand = emit.call(spectral.hadamard.default, (centred, 0), like=x)
    codes, _ = quantize(emit, ACTIVATION, transpose(emit, operand, True), 1, x, None)
    assert codes[0].args[0].args[:9] == (x, mean, None, None, "mxfp4", "even", 0, 1, True)


def test_two_ways_of_rounding_a_tensor_are_not_taken_for_one() -> None:
    graph, (x,) = graph_of((32, 48))
    emit = Emitter(graph)
    nodes = {quantize(emit, plan, x, 1, x, None)[0] for plan in (WEIGHT, ACTIVATION)}
    nodes |= {quantize(emit, OperandPlan("activation", "mxfp4", "floor"), x, 1, x, None)[0]}
    assert len(nodes) == 3
    assert quantize(emit, ACTIVATION, x, 1, x, None)[0] in nodes


def test_what_a_later_reader_asked_for_first_moves_up_to_an_earlier_one() -> None:
    """Two casts of one weight: equal values, but the second does not stand before the first one's reader."""
    graph, (w,) = graph_of((32, 48))
    emit = Emitter(graph)
    casts = []
    for _ in range(2):
        cast = graph.call_function(torch.ops.prims.convert_element_type.default, (w, torch.bfloat16))
        cast.meta["val"] = w.meta["val"].to(torch.bfloat16)
        casts.append(cast)
        reader = graph.call_function(aten.relu.default, (cast,))
        reader.meta["val"] = cast.meta["val"]
    later, _ = quantize(emit, WEIGHT, casts[1], 1, w, None)
    earlier, _ = quantize(emit, WEIGHT, casts[0], 1, w, None)
    assert earlier == later
    assert all(casts[0] < node < casts[1] for node in (*earlier, earlier[0].args[0]))
    graph.output(earlier)
    graph.lint()
