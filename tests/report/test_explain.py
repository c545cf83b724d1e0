"""explain: the plan before anything is trained, what is saved and what it costs, and a model left as it was."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spectral_compile as spectral
from spectral_compile import explain
from spectral_compile.pipeline import observe
from spectral_compile.report.saved import saved_bytes
from tests.capture import compiled_eagerly


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.dropout(torch.relu(self.norm(self.up(x))), 0.5, True))


def x() -> Tensor:
    return torch.randn(64, 32, requires_grad=True)


def test_every_product_is_there_with_its_work_or_its_reason() -> None:
    (graph,) = explain(Net(), x(), options={"recipe": "nvfp4-plain", "exclude": ["down"]}).graphs
    rows = {(p.plan.layer, p.plan.role): p for p in graph.products}
    assert set(rows) == {(layer, role) for layer in ("up", "down") for role in ("fprop", "dgrad", "wgrad")}
    assert all(product.flops == 2 * 64 * 32 * 64 for product in graph.products)
    assert rows["up", "fprop"].plan.quantized
    assert rows["down", "wgrad"].plan.reason == "high precision by the rule for layers 'down'"
    assert graph.flops(quantized=True) * 2 == graph.flops()


def test_saved_bytes_are_those_that_a_run_saves() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    value = torch.randn(64, 64, requires_grad=True)
    for recipe in ("nvfp4-plain", "averis"):
        (graph,) = explain(model, value, options={"recipe": recipe}).graphs
        compiled = compiled_eagerly(model, recipe=recipe)
        seed = 8  # the seed of stochastic rounding, which is an input
        measured = saved_bytes(lambda compiled=compiled: compiled(value), leave_out=[model, value]) - seed
        assert abs(int(graph.saved) - measured) <= 16
    exact = torch.compile(model, backend="aot_eager_decomp_partition")
    assert int(graph.saved_unchanged) == saved_bytes(lambda: exact(value), leave_out=[model, value])


def test_what_a_backward_product_reads_of_the_saved_is_told_with_it() -> None:
    (graph,) = explain(nn.Linear(64, 32, bias=False), torch.randn(128, 64), options={"recipe": "nvfp4-plain"}).graphs
    (fprop, wgrad) = graph.products
    assert (fprop.plan.role, wgrad.plan.role) == ("fprop", "wgrad")
    assert fprop.saved == 0
    codes_and_scales = 128 * 64 // 2 + 128 * 64 // 16
    assert int(wgrad.saved) - codes_and_scales in (0, 4)  # with the tensor scale


def test_dynamic_sizes_stay_symbols() -> None:
    value = torch.randn(64, 32)
    torch._dynamo.mark_dynamic(value, 0)
    explanation = explain(nn.Linear(32, 16), value)
    (graph,) = explanation.graphs
    (tokens,) = graph.flops().free_symbols
    assert graph.products[0].flops == 2 * tokens * 32 * 16
    assert tokens in graph.saved.free_symbols
    assert str(tokens) in str(explanation)
    json.dumps(explanation.as_dict())


def test_the_model_is_left_as_it_was() -> None:
    model, value = Net(), x()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    explain(model, value)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_it_may_be_asked_as_often_as_one_likes_and_of_a_compiled_model() -> None:
    model = nn.Linear(32, 16)
    assert all(len(explain(model, x()).graphs) == 1 for _ in range(12))
    assert len(explain(torch.compile(model, backend="spectral"), x()).graphs) == 1

    class Mine(nn.Linear):
        pass

    mine = Mine(32, 16)
    mine.compile(backend="spectral", options={"codegen": "eager"})
    own_call = mine._compiled_call_impl
    assert len(explain(mine, x()).graphs) == 1
    assert mine._compiled_call_impl is own_call


def test_a_function_and_its_decorators() -> None:
    model = nn.Linear(32, 16)

    @spectral.configure(recipe="mxfp4")
    def forward(value: Tensor) -> Tensor:
        return model(value).relu()

    (graph,) = explain(forward, x()).graphs
    assert {p.plan.a.format for p in graph.products if p.plan.a is not None} == {"mxfp4"}


def test_the_kernels_that_came_of_each_product() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (graph,) = explain(Net(), x(), options={"recipe": "nvfp4-plain"}).graphs
    found = {(p.plan.layer, p.plan.role): p.kernels for p in graph.products}
    assert found["up", "fprop"] == ("round", "carry", "product_plus_row, bfloat16")  # the codes are kept, for dgrad
    assert found["up", "dgrad"] == ("round", "carry", "product, bfloat16")
    assert found["up", "wgrad"] == ("round", "carry", "product, bfloat16")  # the gradient, and what was saved of x
    (graph,) = explain(Net(), x(), options={"recipe": "identity"}).graphs
    assert {p.kernels[-1] for p in graph.products} == {"scaled_mm"}
    (graph,) = explain(Net(), x(), options={"exclude": "."}).graphs
    assert {p.kernels for p in graph.products} == {()}
    with torch.no_grad():
        (graph,) = explain(Net().eval(), x()).graphs
    assert {p.kernels for p in graph.products} == {("round", "round", "product_plus_row, float32")}


def test_under_no_grad_only_the_forward_is_explained() -> None:
    with torch.no_grad():
        (graph,) = explain(Net().eval(), x()).graphs
    assert {p.plan.role for p in graph.products} == {"fprop"}
    assert (graph.saved, graph.saved_unchanged) == (0, 0)


def test_a_checkpointed_region_that_draws_at_random() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32))
    (graph,) = explain(lambda value: checkpoint(model, value, use_reentrant=False).relu(), x()).graphs
    assert len(graph.products) == 6
    assert graph.saved_unchanged is not None


def test_notes_say_what_a_table_does_not() -> None:
    def breaks(value: Tensor) -> Tensor:
        value = model[0](value)
        torch._dynamo.graph_break()
        return model[1](value)

    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    assert any("2 graphs" in note for note in explain(breaks, x()).notes)
    assert any("Sequential is torch's own class" in note for note in explain(model, x()).notes)
    (note,) = explain(lambda value: value + 1, x()).notes
    assert "nothing that multiplies weights" in note
    assert explain(Net(), x()).notes == ()


def test_it_prints_a_table_a_graph() -> None:
    printed = str(explain(Net(), x(), options={"recipe": "averis"}))
    assert "6 of 6 products in four bits, 100% of the work" in printed
    assert "saved for backward:" in printed
    assert "centred" in printed


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        explain(Net(), x(), options={"recipe": "none such"})


def test_explaining_leaves_room_for_compiling() -> None:
    torch._dynamo.reset()
    model = Net()
    for _ in range(12):
        explain(model, x())
    seen: list[str] = []
    stop = observe(lambda stage, graph, plan: seen.append(stage))
    torch.compile(model, backend="spectral", options={"codegen": "eager"})(x())
    stop()
    assert "joint" in seen


def test_a_graph_with_a_constant_of_its_own_and_a_step_decorated_above_compile() -> None:
    model = nn.Linear(32, 16)

    @spectral.exclude
    @torch.compile(backend="spectral", options={"codegen": "eager"})
    def step(value: Tensor) -> Tensor:
        return model(value) * torch.tensor([2.0] * 16)

    (graph,) = explain(step, x()).graphs
    assert not any(product.plan.quantized for product in graph.products)
