"""The last rewrite: what becomes of scaled_mm in each partitioned graph, and that no number changes by it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from spectral_compile import Hadamard, MeanCenter, Operand, QuantizeFP4, Rule
from spectral_compile.lowering.carriers import to_carriers
from tests.capture import Capture, calls, capture, copy_of, count

NEAREST = QuantizeFP4(gradients=Operand(rounding="nearest"))


def inputs(tokens: int = 48, features: int = 32) -> Tensor:
    return torch.randn(tokens, features, requires_grad=True)


def lowered(graph: fx.Graph) -> fx.Graph:
    twin = copy_of(graph)
    to_carriers(twin)
    twin.lint()
    return twin


def results(graph: fx.Graph, *arguments: Tensor) -> list[Tensor]:
    return [r for r in fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*arguments) if r is not None]


def bound(graph: fx.Graph) -> Iterator[Tensor]:
    """A value for each placeholder."""
    torch.manual_seed(1)
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        yield torch.randn(value.shape, dtype=value.dtype) if value.is_floating_point() else torch.tensor(7)


OPTIONS: list[dict[str, Any]] = [
    {"recipe": "nvfp4-plain"},
    {"recipe": "averis"},
    {"recipe": "averis+hadamard"},
    {"recipe": "averis-mxfp4"},
    {"recipe": "averis", "passes": [MeanCenter(mode="paper")]},
    {"recipe": "nvfp4-plain", "rules": [Rule(activations=Operand(format="mxfp4"))]},
    {"recipe": "nvfp4-plain", "passes": [Hadamard(gemms=("fprop", "dgrad"))]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 32), (45, 19)])
def test_no_number_changes(options: dict[str, Any], autocast: torch.dtype | None, shape: tuple[int, int]) -> None:
    graph = capture(nn.Linear(shape[1], 40), inputs(*shape), autocast=autocast, **options).final
    after = lowered(graph)
    assert count(after, "spectral.scaled_mm") == 0
    arguments = list(bound(graph))
    for got, expected in zip(results(after, *arguments), results(graph, *arguments), strict=True):
        # The reference multiplies values in fp32; a bf16 product rounds its sums once more.
        tolerance = 1e-5 if autocast is None else 2**-7
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_ops_before_and_after() -> None:
    before = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain").final
    after = lowered(before)
    assert (count(before, "spectral.quantize"), count(before, "spectral.scaled_mm")) == (5, 3)
    assert (count(after, "spectral.quantize"), count(after, "spectral.round")) == (0, 5)
    assert (count(after, "spectral.product"), count(after, "spectral.product_plus_row")) == (2, 1)
    assert count(after, "spectral.carry") == 0
    assert count(after, "spectral.amax") == 2  # of x and of the gradient, each for both axes; the weight has but one


def test_the_read_that_takes_the_mean_finds_the_largest_magnitudes() -> None:
    after = lowered(capture(nn.Linear(32, 16), inputs(), recipe="averis").final)
    assert count(after, "spectral.amax") == 0
    assert (count(after, "spectral.token_mean_amax"), count(after, "spectral.token_mean_nonzero_amax")) == (1, 1)
    assert (count(after, "spectral.token_mean"), count(after, "spectral.token_mean_nonzero")) == (0, 0)
    mxfp4 = lowered(capture(nn.Linear(32, 16), inputs(), recipe="averis-mxfp4").final)
    assert (count(mxfp4, "spectral.token_mean"), count(mxfp4, "spectral.token_mean_nonzero")) == (1, 1)


def test_codes_that_leave_the_graph_stay_codes_and_those_that_come_in_are_carried() -> None:
    forward, backward = partitioned(nn.Linear(32, 16), inputs())
    assert Counter(str(node.target) for node in forward.nodes if "spectral" in str(node.target)) == {
        "spectral.amax.default": 1,
        "spectral.round.default": 1,  # x along features
        "spectral.quantize.default": 2,  # x along tokens and the weight, for wgrad and dgrad
        "spectral.carry.default": 1,  # the weight, for fprop
        "spectral.product_plus_row.default": 1,  # the bias
    }
    assert count(backward, "spectral.carry") == 2
    assert count(backward, "spectral.round") == 2  # the gradient along both axes


def partitioned(model: nn.Module, x: Tensor) -> tuple[fx.Graph, fx.Graph]:
    """The forward and the backward graph that Inductor would get, lowered."""
    from functorch.compile import min_cut_rematerialization_partition

    joint = capture(model, x, recipe="nvfp4-plain").final
    gm = fx.GraphModule(nn.Module(), joint)
    forward, backward = min_cut_rematerialization_partition(gm, None, num_fwd_outputs=1)
    return lowered(forward.graph), lowered(backward.graph)


def test_values_that_several_products_read_are_rounded_once() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(32, 16), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.q(x)) * torch.sigmoid(self.k(x))

    graph = lowered(capture(Heads(), inputs(), recipe="nvfp4-plain").final)
    read = Counter(node.args[0].name for node in calls(graph, "spectral.round"))
    assert sorted(read.values()) == [1, 1, 2, 2, 2]  # two weights; x and two gradients along both axes


def test_identity_operands_are_left_to_scaled_mm() -> None:
    rules = [Rule(gemms=("fprop",), weights=Operand(format="identity"))]
    captured: Capture = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain", rules=rules)
    after = lowered(captured.final)
    assert (count(after, "spectral.scaled_mm"), count(after, "spectral.product")) == (1, 2)
    whole = lowered(capture(nn.Linear(32, 16), inputs(), recipe="identity").final)
    assert count(whole, "spectral.scaled_mm") == 3


def test_a_graph_without_our_products_is_left_alone() -> None:
    graph = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain").graphs["joint"]
    assert lowered(graph).python_code("").src == copy_of(graph).python_code("").src
