"""Names of parameters and modules, as Dynamo spells them and as users do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from spectral_compile.graph.facts import GraphFacts, gather, module_stack, plain_path


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("L['self']._modules['0']._parameters['weight']", "0.weight"),
        ("L['self']._parameters['weight']", "weight"),
        ("L['self'].layers[0]", "layers.0"),
        ("L['self']._modules['layers']._modules['11']._modules['mlp']", "layers.11.mlp"),
        ("L['self']._buffers['inv_freq']", "inv_freq"),
        ("L['self'].experts['a'].weight", "experts.a.weight"),
        ("G['model']._modules['head']", "head"),
        ("getattr(L['self'], '0')", "0"),
        ("getattr(L['self'].layers, '3').mlp", "layers.3.mlp"),
        ("getattr(getattr(L['self'], 'a'), '0')", "a.0"),
        ("L['x']", ""),
        ("", ""),
    ],
)
def test_plain_path_is_what_named_modules_says(expression: str, path: str) -> None:
    assert plain_path(expression) == path


def facts_of(model: Any, *inputs: Tensor, dynamic: bool | None = None) -> GraphFacts:
    found: list[GraphFacts] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        found.append(gather(gm, example_inputs))
        return gm.forward

    torch.compile(model, backend=backend, dynamic=dynamic)(*inputs)
    (facts,) = found
    return facts


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_inputs_that_are_parameters_have_their_names_and_others_none() -> None:
    facts = facts_of(Tied(), torch.arange(8))
    named = [name for name in facts.inputs if name is not None]
    layers = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert sorted(named) == sorted(["embed.weight", *layers])  # a tied weight is one input
    assert facts.inputs.count(None) == 2  # the tokens and the buffer


def test_layers_are_the_paths_of_all_modules() -> None:
    assert {"embed", "layers.0", "layers.1", "head"} <= facts_of(Tied(), torch.arange(8)).layers


def test_symbolic_sizes_are_inputs_without_a_name() -> None:
    assert None in facts_of(nn.Sequential(nn.Linear(4, 4)), torch.randn(7, 4), dynamic=True).inputs


def test_checkpointed_regions_are_looked_into() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))

    def run(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)

    facts = facts_of(run, torch.randn(3, 4))
    assert facts.has_matmul
    assert any(path.endswith("0") for path in facts.layers)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ x.T, True),
        (lambda x: torch.einsum("ij,kj->ik", x, x), True),
        (lambda x: torch.addmm(x, x, x), True),
        (lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]), True),
        (lambda x: torch.relu(x).sum(), False),
    ],
)
def test_has_matmul(function: Callable[[Tensor], Tensor], expected: bool) -> None:
    assert facts_of(function, torch.randn(4, 4)).has_matmul is expected


def test_module_stack_is_outermost_first_and_read_from_backward_nodes_too() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    assert module_stack(node) == []
    node.meta["fwd_nn_module_stack"] = {"1": ("L['self'].a", nn.Sequential), "2": ("L['self'].a[0]", nn.Linear)}
    assert module_stack(node) == [("a", nn.Sequential), ("a.0", nn.Linear)]
