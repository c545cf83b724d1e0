"""Quantised training against the same algebra written once more, by hand, as an autograd.Function."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import spectral_compile
from spectral_compile import MeanCenter, Operand, QuantizeFP4
from spectral_compile.config import parse_options
from spectral_compile.formats import Quantized, dequantize, quantize
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.pipeline import PassManager
from spectral_compile.scopes import Scopes
from tests.capture import Capture, assert_close, calls, capture, compiled_eagerly, count, gradients

NEAREST = [QuantizeFP4(gradients=Operand(rounding="nearest"))]


def rounded(x: Tensor, tile_rows: int = 1) -> Tensor:
    """x [rows, cols] in NVFP4 with blocks along cols, and back."""
    return dequantize(quantize(x, tile_rows=tile_rows), "nvfp4", x.shape[1])


class Reference(torch.autograd.Function):
    """y = x W' + bias with x, W and the gradient in NVFP4: the published formulas, two-dimensional weight blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, centre: bool) -> Tensor:
        mean = x.sum(0) / len(x) if centre and len(x) >= 32 else torch.zeros(x.shape[1])
        ctx.save_for_backward(x, w, mean)
        ctx.centre = centre
        return rounded(x - mean) @ rounded(w, 16).T + (w * mean).sum(1) + bias

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean = ctx.saved_tensors
        counts = (d != 0).any(1)
        mean_d = torch.zeros(d.shape[1])
        if ctx.centre and len(x) >= 32 and counts.sum() >= 32:
            mean_d = d.sum(0) / counts.sum()
        within = d - counts[:, None] * mean_d
        dx = rounded(within) @ rounded(w, 16) + counts[:, None] * (w.T @ mean_d)
        shift = mean_d if counts.all() else torch.zeros_like(mean_d)
        dw = rounded((d - shift).T) @ rounded((x - mean).T).T
        if ctx.centre and len(x) >= 32:
            dw = dw + torch.outer(d.sum(0), mean)
        return dx, dw, d.sum(0), None


class ByHand(nn.Module):
    def __init__(self, linear: nn.Linear, centre: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.centre = linear.weight, linear.bias, centre

    def forward(self, x: Tensor) -> Tensor:
        return Reference.apply(x, self.weight, self.bias, self.centre)


def grid(*shape: int) -> Tensor:
    """Numbers whose sums are exact in any order, so that a mean has one value whoever computes it."""
    return torch.randint(-64, 65, shape) / 16


@settings(max_examples=10)
@given(
    tokens=st.integers(2, 90),
    features=st.integers(2, 50),
    out=st.integers(2, 50),
    recipe=st.sampled_from(["averis", "nvfp4-plain"]),
    masked=st.booleans(),
)
def test_gradients_are_those_of_the_formulas(tokens: int, features: int, out: int, recipe: str, masked: bool) -> None:
    linear = nn.Linear(features, out)
    x = (grid(tokens, features) + 3).requires_grad_()
    cotangent = grid(tokens, out) * (torch.arange(tokens) % 7 != 3 if masked else torch.ones(tokens))[:, None]

    def loss(y: Tensor) -> Tensor:
        return (y * cotangent).sum()

    got = capture(linear, x, recipe=recipe, passes=NEAREST, loss=loss)
    by_hand = ByHand(linear, centre=recipe == "averis")
    expected = gradients(by_hand, by_hand, x, loss=loss)
    torch.testing.assert_close(got.output, expected.output, rtol=1e-5, atol=1e-4)
    for name, value in expected.gradients.items():
        torch.testing.assert_close(got.gradients[name], value, rtol=1e-5, atol=1e-3, msg=name)


def values_in(graph: fx.Graph, inputs: dict[tuple[int, ...], Tensor]) -> dict[fx.Node, Any]:
    """What each node computes, with each placeholder bound to the input of its shape."""
    seen: dict[fx.Node, Any] = {}

    class Record(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            seen[node] = super().run_node(node)
            return seen[node]

    bound = [inputs[tuple(node.meta["val"].shape)] for node in graph.find_nodes(op="placeholder")]
    Record(fx.GraphModule(nn.Module(), graph)).run(*bound)
    return seen


@pytest.mark.parametrize("recipe", ["averis", "nvfp4-plain"])
@pytest.mark.parametrize("shape", [(48, 32, 16), (45, 19, 33)])
def test_codes_and_scales_in_the_graph_are_the_formats_bit_for_bit(recipe: str, shape: tuple[int, ...]) -> None:
    tokens, features, out = shape
    linear, x = nn.Linear(features, out), (grid(tokens, features) + 3).requires_grad_()
    graph = capture(linear, x, recipe=recipe, passes=NEAREST).final
    d = grid(tokens, out)
    d[3] = 0  # a token that does not count
    mean, mean_d = torch.zeros(features), torch.zeros(out)
    if recipe == "averis":
        mean, mean_d = x.detach().sum(0) / tokens, d.sum(0) / (tokens - 1)
    expected = [
        quantize(x.detach() - mean),
        quantize(linear.weight.detach(), tile_rows=16),
        quantize((x.detach() - mean).T),
        quantize(d - (d != 0).any(1)[:, None] * mean_d),
        quantize(d.T),  # with a zero row, the mean stays in: 1' (X - mean) = 0 takes care of it
    ]
    inputs = {t.shape: t.detach() for t in (x, linear.weight, linear.bias, d)}
    seen = values_in(graph, {tuple(shape): value for shape, value in inputs.items()})
    got = [Quantized(*value) for node, value in seen.items() if str(node.target) == "spectral.quantize.default"]
    assert len(got) == 5
    for wanted in expected:
        assert any(_same_bits(q, wanted) for q in got)


def _same_bits(a: Quantized, b: Quantized) -> bool:
    return all(
        x.shape == y.shape and torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        for x, y in zip(map(torch.atleast_1d, a), map(torch.atleast_1d, b), strict=True)
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + torch.cos(self.v(x))


def inputs(tokens: int = 64, features: int = 32) -> Tensor:
    return torch.randn(tokens, features, requires_grad=True)


def test_ops_before_and_after() -> None:
    captured = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain")
    before, after = captured.graphs["mean_center"], captured.final
    assert (count(before, "aten.addmm"), count(before, "aten.mm"), count(before, "spectral.quantize")) == (1, 2, 0)
    assert (count(after, "aten.addmm"), count(after, "aten.mm")) == (0, 0)
    assert count(after, "spectral.scaled_mm") == 3
    assert count(after, "spectral.quantize") == 5  # x and d along both axes, and the weight once


@pytest.mark.parametrize("recipe", ["averis", "nvfp4-plain"])
def test_q_k_and_v_share_the_quantisations_of_their_input(recipe: str) -> None:
    graph = capture(Attention(), inputs(), recipe=recipe).final
    by_tensor: dict[str, int] = {}
    for node in calls(graph, "spectral.quantize"):
        by_tensor[node.args[0].name] = by_tensor.get(node.args[0].name, 0) + 1
    # x along both axes; three weights once each; three gradients along both axes
    assert sorted(by_tensor.values()) == [1, 1, 1, 2, 2, 2, 2]
    assert count(graph, "spectral.quantize") == 11


def test_fprop_and_dgrad_read_one_set_of_weight_codes_and_1x16_blocks_need_two() -> None:
    graph = capture(nn.Linear(32, 16), inputs()).final
    fprop, dgrad, _ = calls(graph, "spectral.scaled_mm")
    assert fprop.args[3:6] == dgrad.args[3:6]
    assert (fprop.args[12], dgrad.args[12]) == (True, False)  # stored along k of the one, along n of the other
    passes = [QuantizeFP4(weights=Operand(square=False))]
    assert count(capture(nn.Linear(32, 16), inputs(), passes=passes).final, "spectral.quantize") == 6


def test_a_linear_called_twice_has_its_weight_quantised_once() -> None:
    layer = nn.Linear(32, 32)
    graph = capture(nn.Sequential(layer, nn.Tanh(), layer), inputs(), recipe="nvfp4-plain").final
    assert len([node for node in calls(graph, "spectral.quantize") if node.args[7] == 16]) == 1


def test_the_activation_that_only_wgrad_reads_is_quantised_in_the_forward() -> None:
    graph = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain").final
    tags = {node.args[6]: [] for node in calls(graph, "spectral.quantize")}
    for node in calls(graph, "spectral.quantize"):
        tags[node.args[6]].append((node.args[0].name[:7], node.meta["partitioner_tag"]))
    assert sorted(tags[0]) == [("primals", "is_forward"), ("tangent", "is_backward")]
    assert sorted(tags[1]) == [("primals", "is_forward"), ("primals", "is_forward"), ("tangent", "is_backward")]


def test_only_gradients_are_rounded_stochastically_each_from_a_stream_of_its_own() -> None:
    graph = capture(Attention(), inputs()).final
    seeded = [node for node in calls(graph, "spectral.quantize") if node.args[3] is not None]
    assert {node.meta["partitioner_tag"] for node in seeded} == {"is_backward"}
    assert len(seeded) == len({node.args[9] for node in seeded}) == 6
    assert len({node.args[3] for node in seeded}) == 1  # one seed input
    nearest = capture(Attention(), inputs(), passes=NEAREST).final
    assert all(node.args[3] is None for node in calls(nearest, "spectral.quantize"))


def test_the_seed_decides_the_gradients_and_nothing_else() -> None:
    model, x = Attention(), inputs()
    first, again, other = (capture(model, x, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.output, other.output)
    assert all(torch.equal(first.gradients[name], again.gradients[name]) for name in first.gradients)
    assert not torch.equal(first.gradients["q.weight"], other.gradients["q.weight"])
    assert torch.equal(first.gradients["q.bias"], other.gradients["q.bias"])  # a sum, not a product


def test_stochastic_gradients_are_right_on_average() -> None:
    linear, x = nn.Linear(32, 16), inputs()
    nearest = capture(linear, x, passes=NEAREST).gradients["weight"]
    exact = gradients(linear, linear, x).gradients["weight"]
    compiled = compiled_eagerly(linear)
    drawn = [gradients(compiled, linear, x).gradients["weight"] for _ in range(40)]
    single = float((drawn[0] - exact).norm())
    assert float((torch.stack(drawn).mean(0) - exact).norm()) < 0.75 * single
    assert single > float((nearest - exact).norm()) > 0


def test_quantising_is_really_done() -> None:
    model, x = Attention(), inputs()
    got, exact = capture(model, x, recipe="nvfp4-plain"), gradients(model, model, x)
    for name, value in exact.gradients.items():
        if "bias" not in name:
            assert 0.02 < float((got.gradients[name] - value).norm() / value.norm()) < 0.5, name


def test_one_graph_serves_all_token_counts() -> None:
    linear = nn.Linear(24, 40)
    plans: list[Any] = []
    stop = spectral_compile.pipeline.observe(
        lambda stage, graph, plan: plans.append(stage) if stage == "joint" else None
    )
    compiled = compiled_eagerly(linear, dynamic=True, passes=NEAREST)
    by_hand = ByHand(linear, centre=True)
    try:
        for tokens in (50, 33, 20, 2):
            x = (grid(tokens, 24) + 3).requires_grad_()
            got, expected = gradients(compiled, linear, x), gradients(by_hand, by_hand, x)
            torch.testing.assert_close(got.output, expected.output, rtol=1e-5, atol=1e-4)
            assert_close(got.gradients, expected.gradients, 1e-4)
    finally:
        stop()
    assert plans == ["joint"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_come_out_as_they_went_in(dtype: torch.dtype) -> None:
    model, x = nn.Linear(32, 16).to(dtype), inputs().detach().to(dtype).requires_grad_()
    captured = capture(model, x)
    assert captured.output.dtype == dtype
    assert {grad.dtype for grad in captured.gradients.values()} == {dtype}
    exact = gradients(model.float(), model, x.detach().float().requires_grad_())
    for name, value in exact.gradients.items():
        assert float((captured.gradients[name].float() - value).norm() / value.norm()) < 0.4, name


def manager(**options: Any) -> tuple[PassManager, fx.GraphModule]:
    """A pass manager and the joint graph of nn.Linear(32, 16) as it was before any pass."""
    captured: Capture = capture(nn.Linear(32, 16), inputs())
    facts = GraphFacts(("weight", "bias", None, None), (), True)
    graph = captured.graphs["joint"]
    parsed = parse_options(options)
    scopes = Scopes(parsed, all_options=(parsed,))
    return PassManager(facts, scopes), fx.GraphModule(nn.Module(), graph)


def test_running_the_passes_twice_changes_nothing() -> None:
    passes, gm = manager(recipe="averis", passes=NEAREST)
    before = gm.graph.python_code("").src
    passes(gm.graph)
    once = gm.graph.python_code("").src
    passes(gm.graph)
    assert before != once == gm.graph.python_code("").src


def test_stochastic_rounding_without_a_seed_is_refused_and_never_silently_to_nearest() -> None:
    passes, gm = manager(recipe="averis")
    with pytest.raises(AssertionError, match="rounded stochastically and the graph has no seed input"):
        passes(gm.graph)


def test_identity_rounds_nothing_and_needs_no_seed() -> None:
    graph = capture(nn.Linear(32, 16), inputs(), recipe="identity").final
    assert {node.args[4] for node in calls(graph, "spectral.quantize")} == {"identity"}
    assert all(node.args[3] is None for node in calls(graph, "spectral.quantize"))


def test_one_by_sixteen_weight_blocks_and_uncentred_gradients_give_finite_gradients_near_the_exact_ones() -> None:
    linear, x = nn.Linear(32, 48), inputs()
    exact = gradients(linear, linear, x).gradients
    for square, rounding in ((False, "nearest"), (False, "stochastic"), (True, "stochastic")):
        quantizer = QuantizeFP4(weights=Operand(square=square), gradients=Operand(rounding=rounding))
        passes = [MeanCenter(gradients=False), quantizer]
        assert_close(capture(linear, x, passes=passes).gradients, exact, 0.35)


@pytest.mark.parametrize("recipe", ["nvfp4-plain", "averis+hadamard", "mxfp4", "averis-mxfp4"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_bad_element_never_gives_a_silent_finite_result(recipe: str, poison: float) -> None:
    linear, x = nn.Linear(64, 32), torch.randn(64, 64)
    x[5, 40] = poison
    captured = capture(linear, x.requires_grad_(), recipe=recipe)
    assert not captured.output[5].isfinite().any()
    assert not captured.gradients["weight"][:, 40].isfinite().any()
    if recipe == "mxfp4":  # a block's scale is poisoned, not the tensor's
        assert captured.output[torch.arange(64) != 5].isfinite().all()
    else:
        assert captured.output.isnan().any(1).all()


def test_a_bad_gradient_poisons_what_is_computed_from_it() -> None:
    linear, x = nn.Linear(64, 32), inputs(64, 64)
    captured = capture(linear, x, recipe="nvfp4", loss=lambda y: y.sum() + y[3, 3] * float("inf"))
    assert captured.gradients["weight"].isnan().all()
    assert captured.gradients["input0"].isnan().all()
