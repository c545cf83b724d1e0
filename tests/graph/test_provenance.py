"""Which product is fprop, dgrad or wgrad, of which layer, and why the others are none of these."""

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from spectral_compile.graph import provenance
from spectral_compile.graph.facts import GraphFacts
from tests.capture import assert_close, capture, gradients


class Model(nn.Module):
    """Any function of parameters and inputs as a module."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def needs_grad(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def roles(model: nn.Module, *inputs: Tensor, **options: Any) -> dict[tuple[str, str], int]:
    """What was found, after checking that the rewrite without rounding gives eager's gradients."""
    captured = capture(model, *inputs, recipe="identity", **options)
    autocast = options.get("autocast")
    expected = gradients(model, model, *inputs, autocast=autocast)
    assert_close(captured.gradients, expected.gradients, 1e-5 if autocast is None else 2e-2)
    return dict(captured.roles)


def one_linear(layer: str, dgrad: int = 1, wgrad: int = 1) -> dict[tuple[str, str], int]:
    found = {(layer, "fprop"): 1, (layer, "dgrad"): dgrad, (layer, "wgrad"): wgrad}
    return {key: count for key, count in found.items() if count}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 24), (4, 10, 24)])
def test_a_linear_has_three_products(shape: tuple[int, ...], bias: bool) -> None:
    model = nn.Sequential(nn.Linear(24, 8, bias=bias))
    assert roles(model, needs_grad(*shape)) == one_linear("0")


def test_autocast_puts_casts_between() -> None:
    model = nn.Sequential(nn.Linear(24, 8))
    assert roles(model, needs_grad(4, 10, 24), autocast=torch.bfloat16) == one_linear("0")


def test_checkpointed_layers_are_found_under_their_own_names() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 16), nn.Linear(16, 24)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.a, x, use_reentrant=False)
            return checkpoint(self.b, torch.relu(x), use_reentrant=False)

    assert roles(Two(), needs_grad(40, 24)) == one_linear("a") | one_linear("b")


def test_a_frozen_weight_has_no_wgrad() -> None:
    model = nn.Sequential(nn.Linear(24, 8))
    model.requires_grad_(False)
    assert roles(model, needs_grad(40, 24)) == one_linear("0", wgrad=0)


def test_the_first_layer_has_no_dgrad() -> None:
    assert roles(nn.Sequential(nn.Linear(24, 8)), torch.randn(40, 24)) == one_linear("0", dgrad=0)


def test_tied_embedding_and_head_are_one_weight_with_one_product() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    assert roles(Tied(), torch.arange(32)) == one_linear("head")


def test_one_linear_called_twice_has_two_products_of_each_kind() -> None:
    layer = nn.Linear(24, 24)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    found = roles(model, needs_grad(40, 24))
    assert sum(found.values()) == 6
    assert {role: sum(n for (_, r), n in found.items() if r == role) for role in ("fprop", "dgrad", "wgrad")} == {
        "fprop": 2,
        "dgrad": 2,
        "wgrad": 2,
    }


@pytest.mark.parametrize(
    ("function", "weight", "x"),
    [
        (lambda s, x: torch.addmm(s.bias, x, s.w), (24, 8), (40, 24)),  # GPT-2's Conv1D
        (lambda s, x: x @ s.w, (24, 8), (40, 24)),
        (lambda s, x: s.w @ x.T, (8, 24), (40, 24)),
        (lambda s, x: s.w @ x, (8, 24), (24, 40)),
        (lambda s, x: x.T @ s.w, (24, 8), (24, 40)),
        (lambda s, x: s.w @ x.T, (40, 40), (40, 40)),  # square: a wrong axis would not even be noticed
        (lambda s, x: x.T @ s.w, (40, 40), (40, 40)),
    ],
)
def test_either_operand_may_be_the_weight_and_either_may_be_transposed(
    function: Callable[..., Tensor], weight: tuple[int, int], x: tuple[int, int]
) -> None:
    model = Model(function, w=torch.randn(weight), bias=torch.randn(weight[1]))
    inputs = torch.randn(x) + 2  # a mean worth removing
    assert roles(model, inputs.requires_grad_()) == one_linear("")


def test_a_reparametrised_weight_is_a_weight() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = parametrizations.weight_norm(nn.Linear(24, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    assert roles(Normed(), needs_grad(40, 24)) == one_linear("fc")


def test_the_product_of_two_parameters_is_weight_arithmetic() -> None:
    def lora(s: Any, x: Tensor) -> Tensor:
        return x @ (s.w + s.up @ s.down).T

    model = Model(lora, w=torch.randn(8, 24), up=torch.randn(8, 4), down=torch.randn(4, 24))
    assert roles(model, needs_grad(40, 24)) == one_linear("") | {("", "other"): 3}
    reasons = [row.reason for row in capture(model, needs_grad(40, 24)).plan.rows if row.role == "other"]
    note = "weight arithmetic: no activation flows in"
    assert reasons == [note, f"backward of: {note}", f"backward of: {note}"]


def test_learned_queries_are_no_weight() -> None:
    """Perceiver, DETR: the queries come from parameters alone, and yet their product with keys is attention's own."""

    def scores(s: Any, x: Tensor) -> Tensor:
        return (s.latents @ s.w_q) @ (x @ s.w_k).T

    model = Model(scores, latents=torch.randn(32, 16), w_q=torch.randn(16, 24), w_k=torch.randn(24, 24))
    rows = capture(model, needs_grad(40, 24)).plan.rows
    assert sorted(row.role for row in rows if row.quantized) == ["dgrad", "fprop", "wgrad"]  # the keys' projection
    assert any("learned queries" in row.reason for row in rows)


def test_a_weight_masked_by_a_buffer_is_not_claimed_to_be_a_weight() -> None:
    layer = nn.Linear(24, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    captured = capture(layer, needs_grad(40, 24))
    note = "neither operand is computed from parameters alone (a buffer, say a mask on a weight, is data)"
    assert [row.reason for row in captured.plan.rows] == [note, f"backward of: {note}", f"backward of: {note}"]


@pytest.mark.parametrize("equation", ["btd,dh->bth", "btd,edh->beth"])
def test_einsum_is_a_product_with_a_stack_of_one_forward_and_backward(equation: str) -> None:
    shape = (24, 8) if equation.startswith("btd,dh") else (2, 24, 8)
    model = Model(lambda s, x: torch.einsum(equation, x, s.w), w=torch.randn(shape))
    rows = capture(model, needs_grad(2, 8, 24)).plan.rows
    assert sorted(row.role for row in rows) == ["dgrad", "fprop", "wgrad"]
    assert all(row.quantized and row.experts == "1" for row in rows)


def test_attention_products_have_no_weight() -> None:
    def attend(s: Any, x: Tensor) -> Tensor:
        q, k, v = (x @ s.qkv).view(2, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2), -1)
        return F.scaled_dot_product_attention(q, k, v) + scores @ v

    rows = capture(Model(attend, qkv=torch.randn(32, 96)), needs_grad(32, 32)).plan.rows
    other = [row for row in rows if row.role == "other"]
    assert {row.reason for row in other} == {"attention product: both operands are activations"}
    assert sorted(row.role for row in rows if row.role != "other") == ["dgrad", "fprop", "wgrad"]


def test_two_activations_multiplied_are_not_taken_for_a_linear_beside_them() -> None:
    def gram(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        similarity = x @ x.T
        with torch.no_grad():  # shares the autograd number of the product before
            teacher = x @ s.w
        return similarity, teacher

    captured = capture(Model(gram, w=torch.randn(24, 8)), needs_grad(40, 24), loss=lambda out: out[0].square().mean())
    assert [row.role for row in captured.plan.rows] == ["other", "fprop", "other", "other"]


def test_a_teacher_without_gradients_does_not_steal_the_students() -> None:
    def distil(s: Any, x: Tensor) -> Tensor:
        student = x @ s.student
        with torch.no_grad():
            teacher = x @ s.teacher
        return student - teacher

    model = Model(distil, student=torch.randn(24, 8), teacher=torch.randn(24, 8))
    found = roles(model, needs_grad(40, 24))
    assert found == {("", "fprop"): 2, ("", "dgrad"): 1, ("", "wgrad"): 1}


class OwnBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return d @ w.T, x.T @ d


def test_an_autograd_functions_own_backward_is_never_taken_for_a_forward() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        return torch.relu(OwnBackward.apply(x, s.w)) @ s.v

    model = Model(run, w=torch.randn(24, 16), v=torch.randn(16, 8))
    found = roles(model, needs_grad(40, 24))
    assert found[("", "fprop")] == 2


def test_convolutions_are_left_alone_and_not_listed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 8))
    assert roles(model, torch.randn(40, 3, 6, 6)) == one_linear("2")


def test_a_region_compiled_once_for_several_calls_is_left_alone() -> None:
    @torch.compiler.nested_compile_region
    def region(x: Tensor, w: Tensor) -> Tensor:
        return torch.relu(x @ w)

    model = Model(lambda s, x: region(region(x, s.w), s.w) @ s.v, w=torch.randn(24, 24), v=torch.randn(24, 8))
    x = needs_grad(40, 24)
    captured = capture(model, x, recipe="identity")
    assert sum(row.quantized for plan in captured.plans for row in plan.rows) == 3  # those of v
    assert_close(captured.gradients, gradients(model, model, x).gradients, 1e-5)


def test_the_graph_relates_tensors_and_products() -> None:
    model = Model(lambda s, x: (x @ s.q) * (x @ s.k), q=torch.randn(24, 8), k=torch.randn(24, 8))
    graph = capture(model, needs_grad(40, 24)).graphs["joint"]
    names = [node.name for node in graph.nodes if node.op == "placeholder"]
    facts = GraphFacts(tuple(_parameter(graph, i) for i in range(3)), (), True)
    related = provenance.trace(graph, facts).graph
    readers = {name: list(related.successors(name)) for name in names if name in related}
    assert sorted(len(products) for products in readers.values()) == [2, 2, 4]  # q, k (fprop, dgrad), x (fprop, wgrad)
    edges = nx.get_edge_attributes(related, "kind")
    assert sorted(edges.values()) == ["dgrad"] * 2 + ["reads"] * 12 + ["wgrad"] * 2


def _parameter(graph: torch.fx.Graph, index: int) -> str | None:
    node = graph.find_nodes(op="placeholder")[index]
    return f"w{index}" if node.meta["val"].shape[0] == 24 else None
