"""Families of transformers, each mode in both dispatches: one head is the layer as it is, two are the equations."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import spectral_compile as spectral
from spectral_compile import HeadwiseRouter
from spectral_compile.passes.headwise_router.cut import Split
from spectral_compile.passes.headwise_router.match import find_routers
from spectral_compile.passes.headwise_router.rewrite import rewrite
from tests.passes.headwise.families import DISPATCHES, FAMILIES, D, Routed, block_of, layer_of, model_of, shared
from tests.passes.headwise.reference import headwise

MODES = ("subtoken", "bank", "mask", "vote")
CHAINS = {
    "gpt-oss": "top-k, softmax",
    "deepseek-v3": "sigmoid, bias, groups, top-k",
    "deepseek-v2, groups": "softmax, groups, top-k",
}


@cache
def traced(family: str, dispatch: str) -> tuple[nn.Module, Tensor, fx.GraphModule, list[Any]]:
    """The block, an input, Dynamo's graph of them, which must be one, and the graph's inputs."""
    block, x = block_of(family, dispatch), torch.randn(2, 8, D, generator=torch.Generator().manual_seed(1))
    graphs: list[tuple[fx.GraphModule, list[Any]]] = []

    def keep(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append((gm, list(inputs)))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Routed(block), backend=keep, fullgraph=True)(x)
    ((gm, inputs),) = graphs
    return block, x, gm, inputs


def run_split(family: str, dispatch: str, mode: str, heads: int, k: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    """The block, its input, and what it gives once its router is split."""
    block, x, gm, inputs = traced(family, dispatch)
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    (router,) = find_routers(graph)
    assert not router.reason
    assert router.family == CHAINS.get(family, "softmax, top-k")
    assert router.dispatch == ("grouped_mm_fallback" if dispatch == "grouped_mm" else "bmm")
    rewrite(router, mode, Split(heads, heads**0.5, k))
    graph.lint()
    return block, x, fx.GraphModule(gm, graph)(*inputs)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_heads_are_the_equation(family: str, dispatch: str, mode: str) -> None:
    for k in (1, 2):
        block, x, y = run_split(family, dispatch, mode, 2, k)
        layer = layer_of(family, block)
        flat = x.view(-1, D)
        expected = headwise(layer, flat, mode, 2, k, 2, 2**0.5)
        if mode == "bank" and layer.down_bias is not None:
            assert (layer.down_bias != 0).any()  # each head's experts add their bias
        torch.testing.assert_close(y.view(-1, D) - shared(block, flat), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_head_is_the_original(family: str, dispatch: str, mode: str) -> None:
    block, x, y = run_split(family, dispatch, mode, 1)
    expected = Routed(block)(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    parameters = dict(block.named_parameters())
    split = torch.autograd.grad(y, list(parameters.values()), gradient, allow_unused=True)
    original = torch.autograd.grad(expected, list(parameters.values()), gradient, allow_unused=True)
    for name, ours, theirs in zip(parameters, split, original, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm() + 1e-9, name


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_train(family: str) -> None:
    model = model_of(family, "grouped_mm")
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    x = torch.randint(0, 64, (2, 8))
    options = {"recipe": "auto", "codegen": "eager", "passes": [HeadwiseRouter(heads=2, acknowledge=True)]}
    compiled = torch.compile(model, backend="spectral", options=options, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = compiled(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == names


@pytest.fixture
def plain() -> Iterator[None]:
    """Warnings are of interest, and are errors where a test does not expect them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_balance_losses_are_the_heads(plain: None) -> None:
    """A loss of the whole router's choices becomes the mean of those of the heads', each on as many rows."""
    model = model_of("mixtral", "grouped_mm", output_router_logits=True, router_aux_loss_coef=1.0, num_hidden_layers=2)
    x = torch.randint(0, 64, (2, 8))
    original = model(input_ids=x, labels=x)

    def aux_of(settings: HeadwiseRouter) -> Any:
        options = {"recipe": "none", "codegen": "eager", "passes": [settings]}
        torch._dynamo.reset()
        other = copy.deepcopy(model)
        other(input_ids=x, labels=x)  # without which transformers collects logits outside of the graph
        return torch.compile(other, backend="spectral", options=options)(input_ids=x, labels=x)

    one = aux_of(HeadwiseRouter(heads=1))
    torch.testing.assert_close(one.aux_loss, original.aux_loss)
    torch.testing.assert_close(one.loss, original.loss)
    two = aux_of(HeadwiseRouter(heads=2, mode="vote"))
    assert abs(two.aux_loss - original.aux_loss) > 1e-4
    assert 0.5 * original.aux_loss < two.aux_loss < 2 * original.aux_loss  # no factor of the heads
    kept = aux_of(HeadwiseRouter(heads=2, mode="vote", aux="original"))
    assert abs(kept.aux_loss - two.aux_loss) > 1e-4
    router = model.model.layers[0].mlp.gate.weight
    assert router.grad is None
    two.aux_loss.backward()


def test_eager_experts_are_named(plain: None) -> None:
    model = model_of("mixtral", "eager")
    options = {"recipe": "none", "codegen": "eager", "passes": [HeadwiseRouter(heads=2)]}
    x = torch.randint(0, 64, (2, 8))
    with pytest.warns(UserWarning, match="set_experts_implementation"):
        torch.compile(model, backend="spectral", options=options)(input_ids=x)


def test_explain_names_each_router(plain: None) -> None:
    model = model_of("qwen3", "grouped_mm", num_hidden_layers=2)
    x = torch.randint(0, 64, (2, 8))
    settings = HeadwiseRouter(heads="attention", mode="mask")
    found = spectral.explain(model, input_ids=x, labels=x, options={"recipe": "none", "passes": [settings]})
    routers = found.graphs[0].routers
    assert [router.layer for router in routers] == [f"model.layers.{i}.mlp.gate" for i in range(2)]
    assert all(router.heads == 2 and not router.reason for router in routers)
    assert "mask, 2 heads, 2 experts each" in str(found)
    assert found.as_dict()["graphs"][0]["routers"][0]["dispatch"] == "grouped_mm_fallback"
