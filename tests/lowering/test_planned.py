"""Memory that Inductor plans: which operators write into it, and that results nobody reads do no harm."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from spectral_compile import MeanCenter
from spectral_compile.lowering.planned import plan_memory
from tests.capture import count

spectral = torch.ops.spectral


def graph_of(function: Any, *inputs: torch.Tensor) -> fx.Graph:
    graph: fx.Graph = torch.fx.experimental.proxy_tensor.make_fx(function)(*inputs).graph
    plan_memory(graph)
    graph.lint()
    return graph


def test_only_calls_whose_results_are_all_read_are_planned() -> None:
    graph = graph_of(lambda x: [*spectral.token_mean_amax(x, 2), spectral.token_mean(x, 2)], torch.randn(4, 4))
    assert count(graph, "spectral.token_mean_amax_planned") == 1
    assert count(graph, "spectral.token_mean_planned") == 1
    graph = graph_of(lambda x: spectral.token_mean_amax(x, 2)[0] + 1, torch.randn(4, 4))
    assert count(graph, "spectral.token_mean_amax") == 1


def test_an_operator_with_one_result_and_an_absent_tensor_is_not() -> None:
    graph = graph_of(lambda x: spectral.amax(x, None, None), torch.randn(4, 4))
    assert count(graph, "spectral.amax") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "mxfp4"},  # whose amax nobody reads
        {"recipe": "averis"},  # the first linear has no dgrad, which alone reads the rows that count
        {"recipe": "averis-mxfp4"},
        {"recipe": "nvfp4-plain", "passes": [MeanCenter(activations=False)]},
        {"recipe": "nvfp4-plain", "passes": [MeanCenter(gradients=False)]},
    ],
    ids=str,
)
def test_inductor_runs_what_is_planned_and_what_is_not(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    x = torch.randn(64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(model, backend="spectral", options=options)(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dynamic_sizes_are_not_planned_and_run() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    compiled = torch.compile(model, backend="spectral", options={"recipe": "averis"}, dynamic=True)
    for tokens in (64, 80):
        compiled(torch.randn(tokens, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
