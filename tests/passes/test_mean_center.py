"""Mean removal changes the graph and not the numbers; with quantisation it changes them for the better."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spectral_compile import Hadamard, MeanCenter, Operand, QuantizeFP4
from tests.capture import assert_close, calls, capture, compiled_eagerly, count, gradients

BOTH = {"activations": True, "gradients": True}


def inputs(tokens: int = 40, features: int = 24, mean: float = 3.0) -> Tensor:
    return (torch.randn(tokens, features) + mean * torch.randn(features)).requires_grad_()


def masking(kept: Tensor) -> Callable[[Tensor], Tensor]:
    """A loss that some tokens do not count in: their gradient is exactly zero."""
    return lambda y: (y * torch.cos(torch.arange(y.numel()).view(y.shape) * 0.7 + 0.3))[kept].sum()


def test_ops_before_and_after() -> None:
    graphs = capture(nn.Linear(24, 8), inputs()).graphs
    before, after = graphs["joint"], graphs["mean_center"]
    assert (count(before, "aten.addmm"), count(before, "aten.mm")) == (1, 2)
    assert (count(after, "aten.addmm"), count(after, "aten.mm")) == (0, 0)
    assert count(after, "spectral.split_mm") == 3
    assert count(after, "spectral.token_mean") == 1  # fprop and wgrad share the activation's mean
    assert count(after, "spectral.token_mean_nonzero") == 1  # dgrad and wgrad share the gradient's
    assert count(after, "spectral.center") == 3  # x; d for dgrad, less zero rows; d for wgrad


def test_quantising_leaves_no_centred_tensor_behind() -> None:
    for dynamic in (False, True):
        assert count(capture(nn.Linear(24, 8), inputs(), dynamic=dynamic).final, "spectral.center") == 0


def test_without_the_pass_there_is_no_mean() -> None:
    graphs = capture(nn.Linear(24, 8), inputs(), recipe="nvfp4-plain").graphs
    assert count(graphs["mean_center"], "spectral.token_mean") == 0
    assert graphs["mean_center"].python_code("").src == graphs["joint"].python_code("").src


@pytest.mark.parametrize(("activations", "gradients_too"), [(True, False), (False, True)])
def test_each_kind_alone(activations: bool, gradients_too: bool) -> None:
    passes = [MeanCenter(activations=activations, gradients=gradients_too)]
    model, x = nn.Linear(24, 8), inputs()
    captured = capture(model, x, recipe="identity", passes=passes)
    row = captured.row("", "wgrad")
    assert (row.a.centered, row.b.centered) == (gradients_too, activations)
    assert captured.row("", "fprop").centered is activations
    assert captured.row("", "dgrad").centered is gradients_too
    assert_close(captured.gradients, gradients(model, model, x).gradients, 1e-5)


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["hp", "requant", "paper"]),
    bias=st.booleans(),
    centred=st.sampled_from([BOTH, {"gradients": False}, {"activations": False}]),
    masked=st.sampled_from(["none", "some", "most", "all"]),
    min_rows=st.sampled_from([1, 32]),
)
def test_exact_but_for_rounding_on_any_shape(
    shape: tuple[int, int, int], mode: str, bias: bool, centred: dict[str, bool], masked: str, min_rows: int
) -> None:
    tokens, features, out = shape
    model, x = nn.Linear(features, out, bias=bias), inputs(tokens, features)
    every = {"none": 1, "some": 2, "most": 13, "all": tokens + 1}[masked]
    kept = torch.arange(1, tokens + 1) % every == 0
    passes = [MeanCenter(**centred, mode=mode, min_rows=min_rows), Hadamard(gemms=[])]
    captured = capture(model, x, recipe="identity", passes=passes, loss=masking(kept))
    expected = gradients(model, model, x, loss=masking(kept))
    torch.testing.assert_close(captured.output, expected.output, rtol=1e-4, atol=2e-5)
    for name, value in expected.gradients.items():
        torch.testing.assert_close(captured.gradients[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert not captured.gradients["input0"][~kept].any()  # masked tokens receive nothing at all


def test_exact_under_autocast_to_bf16() -> None:
    model, x = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8)), inputs()
    captured = capture(model, x, recipe="identity", autocast=torch.bfloat16)
    assert captured.row("0", "fprop").dtype == "bfloat16"
    # bf16 rounds eager's products too: both are compared with fp32, and ours may not be much the worse
    exact = gradients(model, model, x).gradients
    theirs = gradients(model, model, x, autocast=torch.bfloat16).gradients
    for name, value in exact.items():
        limit = 1.5 * float((theirs[name] - value).norm()) + 1e-6
        assert float((captured.gradients[name] - value).norm()) <= limit, name


def test_few_tokens_are_not_centred_and_the_plan_says_so() -> None:
    captured = capture(nn.Linear(24, 8), inputs(tokens=31))
    assert not any(row.centered for row in captured.plan.rows)
    assert count(captured.graphs["mean_center"], "spectral.token_mean") == 0
    assert all(row.centered for row in capture(nn.Linear(24, 8), inputs(tokens=32)).plan.rows)


def test_with_unknown_token_counts_the_operator_decides() -> None:
    model = nn.Linear(24, 8)
    nearest = [QuantizeFP4(gradients=Operand(rounding="nearest"))]
    compiled = compiled_eagerly(model, dynamic=True, passes=nearest)
    plain = compiled_eagerly(model, dynamic=True, recipe="nvfp4-plain", passes=nearest)
    few, many = inputs(tokens=20), inputs(tokens=50)
    with torch.no_grad():
        assert torch.equal(compiled(few), plain(few))
        assert not torch.equal(compiled(many), plain(many))


def test_a_common_mean_no_longer_costs_precision() -> None:
    model, x = nn.Linear(64, 32), inputs(128, 64, mean=10.0)
    exact = gradients(model, model, x)
    errors: dict[str, dict[str, float]] = {}
    for recipe in ("nvfp4-plain", "averis"):
        got = capture(model, x, recipe=recipe)
        spread = exact.output - exact.output.mean(0)
        errors[recipe] = {
            "forward": float(((got.output - exact.output).norm() / spread.norm()).detach()),
            "weight": float((got.gradients["weight"] - exact.gradients["weight"]).norm()),
        }
    assert errors["averis"]["forward"] < 0.25 * errors["nvfp4-plain"]["forward"]
    assert errors["averis"]["weight"] < 0.5 * errors["nvfp4-plain"]["weight"]


def test_masked_tokens_stay_exactly_zero_when_quantised() -> None:
    kept = torch.arange(40) % 2 == 0
    for recipe in ("averis", "nvfp4-plain"):
        captured = capture(nn.Linear(24, 8), inputs(), recipe=recipe, loss=masking(kept))
        assert not captured.gradients["input0"][~kept].any()
        assert captured.gradients["input0"][kept].any(1).all()


def test_means_are_forward_where_the_activation_is_and_backward_where_the_gradient_is() -> None:
    graph = capture(nn.Linear(24, 8), inputs()).graphs["mean_center"]
    (mean,), (mean_nonzero,) = calls(graph, "spectral.token_mean"), calls(graph, "spectral.token_mean_nonzero")
    assert mean.meta["partitioner_tag"] == "is_forward"
    assert mean_nonzero.meta["partitioner_tag"] == "is_backward"


@pytest.mark.parametrize("function", [lambda x, w: w @ x.T, lambda x, w: w @ x, lambda x, w: x.T @ w.T])
def test_the_mean_is_over_tokens_however_the_operands_lie(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Square(nn.Module):  # square: a mean over the wrong axis has a fitting shape as well
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(40, 40))

        def forward(self, x: Any) -> Tensor:
            return function(x, self.w)

    model, x = Square(), inputs(40, 40)
    captured = capture(model, x, recipe="identity")
    assert all(row.centered for row in captured.plan.rows)
    assert_close(captured.gradients, gradients(model, model, x).gradients, 2e-5)
