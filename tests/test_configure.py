"""Settings on functions, module classes and modules: for which products they are, in which order, and when anew."""

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectral_compile as spectral
from spectral_compile import Hadamard, MeanCenter, Operand, QuantizeFP4, Rule
from spectral_compile.pipeline import observe
from spectral_compile.plan import Plan
from tests.capture import Capture, capture

MX = QuantizeFP4(format="mxfp4")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(x))


class Outer(nn.Module):
    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or Inner()
        self.second = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def x() -> Tensor:
    return torch.randn(64, 32, requires_grad=True)


def formats(captured: Capture) -> dict[str, set[str]]:
    """Per layer, the formats of all its products' operands, or why there are none."""
    found: dict[str, set[str]] = {}
    for row in captured.plan.rows:
        operands = [operand.format for operand in (row.a, row.b) if operand is not None]
        found.setdefault(row.layer, set()).update(operands or [row.reason])
    return found


class Compiles:
    """The plans of what is compiled while this is open: one a compile."""

    def __enter__(self) -> list[Plan]:
        torch._dynamo.reset()
        plans: list[Plan] = []
        self.stop = observe(lambda stage, graph, plan: plans.append(plan) if stage == "joint" else None)
        return plans

    def __exit__(self, *_: object) -> None:
        self.stop()


OPTIONS = {"recipe": "nvfp4-plain", "codegen": "eager"}


def test_a_module_has_its_settings_for_the_products_inside_it() -> None:
    model = Outer()
    spectral.configure(MX)(model.first)
    found = formats(capture(model, x(), recipe="nvfp4-plain"))
    assert found == {"first.up": {"mxfp4"}, "second.up": {"nvfp4"}}


def test_a_class_has_its_settings_wherever_it_is_used_and_its_subclasses_too() -> None:
    @spectral.configure(MX)
    class Mine(Inner):
        pass

    class Derived(Mine):
        pass

    for first in (Mine(), Derived()):
        found = formats(capture(Outer(first), x(), recipe="nvfp4-plain"))
        assert found == {"first.up": {"mxfp4"}, "second.up": {"nvfp4"}}


@pytest.mark.parametrize("in_place", [False, True])
def test_the_root_module_included(in_place: bool) -> None:
    @spectral.configure(MX)
    class Root(Outer):
        pass

    configured = Outer()
    spectral.configure(MX)(configured)
    for model in (Root(), configured):
        with Compiles() as plans:
            if in_place:
                model.compile(backend="spectral", options=OPTIONS)
                model(x())
            else:
                torch.compile(model, backend="spectral", options=OPTIONS)(x())
        assert {row.a.format for row in plans[0].rows if row.a is not None} == {"mxfp4"}


def test_inner_modules_go_before_outer_ones_and_modules_before_functions_and_those_before_options() -> None:
    model = Outer()
    spectral.configure(Hadamard(), MeanCenter())(model)
    spectral.configure(recipe="mxfp4")(model.first)
    captured = capture(model, x(), recipe="nvfp4")
    assert formats(captured) == {"first.up": {"mxfp4"}, "second.up": {"nvfp4"}}
    assert not captured.row("first.up", "fprop").centered  # a recipe puts aside the passes from farther out
    assert captured.row("second.up", "fprop").centered
    assert captured.row("second.up", "wgrad").hadamard

    @spectral.configure(MX, MeanCenter(gradients=False))
    def step(model: nn.Module, value: Tensor) -> Tensor:
        return model(value)

    inner = Outer()
    spectral.configure(QuantizeFP4())(inner.second)
    captured = capture(lambda value: step(inner, value), x(), recipe="nvfp4-plain")
    assert formats(captured) == {"first.up": {"mxfp4"}, "second.up": {"nvfp4"}}
    assert captured.row("second.up", "fprop").centered  # what the module does not say, the function does


def test_rules_and_exclusions_of_decorators_are_tried_first() -> None:
    model = Outer()
    spectral.configure(rules=[Rule(layers="up", activations=Operand(format="mxfp4"))])(model.first)
    spectral.configure(exclude="up")(model.second)
    rules = [Rule(layers="first", activations=Operand(format="identity"))]
    captured = capture(model, x(), recipe="nvfp4-plain", rules=rules)
    assert captured.row("first.up", "fprop").a.format == "mxfp4"  # type: ignore[union-attr]
    assert captured.reasons == {"second.up": "high precision by the rule for layers 'up'"}


def test_exclude_keeps_a_module_a_class_and_a_function_in_high_precision() -> None:
    @spectral.exclude
    class Kept(Inner):
        pass

    model = Outer(Kept())
    assert spectral.exclude(model.second.up) is model.second.up
    captured = capture(model, x(), recipe="nvfp4-plain")
    assert set(captured.reasons) == {"first.up", "second.up"}
    assert all(reason.startswith("excluded: spectral_compile.exclude") for reason in captured.reasons.values())

    plain = Outer()
    kept = spectral.exclude(lambda value: plain.first(value))
    captured = capture(lambda value: plain.second(kept(value)), x(), recipe="nvfp4-plain")
    assert len(captured.reasons) == 1


def test_a_function_above_compile_is_read_when_it_compiles_and_below_it_too() -> None:
    model = Outer()

    @spectral.configure(MX)
    @torch.compile(backend="spectral", options=OPTIONS, fullgraph=True)
    def above(value: Tensor) -> Tensor:
        return model(value)

    @torch.compile(backend="spectral", options=OPTIONS, fullgraph=True)
    @spectral.configure(MX)
    def below(value: Tensor) -> Tensor:
        return model(value)

    for step in (above, below):
        with Compiles() as plans:
            step(x()).sum().backward()
        assert [len(plan.quantized) for plan in plans] == [6]
        assert {row.a.format for row in plans[0].rows if row.a is not None} == {"mxfp4"}


def test_nested_functions_inside_compiled_code_all_count_and_break_no_graph() -> None:
    model = Outer()
    first = spectral.configure(MeanCenter())(lambda value: model.first(value))

    @torch.compile(backend="spectral", options=OPTIONS, fullgraph=True)
    @spectral.configure(MX)
    def step(value: Tensor) -> Tensor:
        return model.second(first(value))

    with Compiles() as plans:
        step(x()).sum().backward()
    (plan,) = plans
    assert {(row.layer.split(".")[-2], row.a.format, row.centered) for row in plan.rows if row.a is not None} == {
        ("first", "mxfp4", True),
        ("second", "mxfp4", False),
    }


def test_a_configuration_that_changes_compiles_anew_and_one_that_returns_does_not() -> None:
    model = Outer()
    compiled = torch.compile(model, backend="spectral", options=OPTIONS, fullgraph=True)
    as_mx, as_averis = (
        spectral.configure(MX)(compiled_call(compiled)),
        spectral.configure(MeanCenter())(compiled_call(compiled)),
    )
    with Compiles() as plans:
        for call in (as_mx, as_averis, as_mx, as_averis, compiled, as_mx):
            call(x())
        assert len(plans) == 3


def compiled_call(compiled: Any) -> Any:
    return lambda value: compiled(value)


def test_configuring_a_module_later_compiles_anew_and_configuring_another_does_not() -> None:
    model = Outer()
    compiled = torch.compile(model, backend="spectral", options=OPTIONS)
    first = Outer()
    spectral.exclude(first.first)  # from here on modules of a class are told apart
    with Compiles() as plans:
        compiled(x())
        spectral.exclude(first.second)
        compiled(x())
        assert len(plans) == 1
        spectral.exclude(model.first)
        compiled(x())
        compiled(x())
    assert [len(plan.quantized) for plan in plans] == [6, 3]


def test_a_configured_module_that_dies_compiles_nothing_anew() -> None:
    other = Outer()
    spectral.exclude(other.first)
    compiled = torch.compile(Outer(), backend="spectral", options=OPTIONS)
    with Compiles() as plans:
        compiled(x())
        del other
        gc.collect()
        compiled(x())
    assert len(plans) == 1


def test_a_copy_of_a_configured_module_is_configured_and_checkpoints_do_not_change() -> None:
    model = Outer()
    names = list(model.state_dict())
    spectral.exclude(model.first)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    del model
    assert set(capture(twin, x(), recipe="nvfp4-plain").reasons) == {"first.up"}


def test_settings_that_do_not_go_together_are_refused_when_they_meet() -> None:
    model = Outer()
    spectral.configure(MeanCenter(mode="paper"))(model.first)
    with pytest.raises(ValueError, match="cannot be done"):
        capture(model, x(), recipe="averis+hadamard")


def test_what_cannot_be_configured_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'mxfp' \(did you mean 'mxfp4'\?\)"):
        spectral.configure(recipe="mxfp")
    with pytest.raises(ValueError, match="MeanCenter more than once"):
        spectral.configure(MeanCenter(), MeanCenter(min_rows=3))
    with pytest.raises(ValueError, match="not a regular expression"):
        spectral.configure(exclude="(")
    with pytest.raises(ValueError, match="is configured, not 3"):
        spectral.configure()(3)  # type: ignore[type-var]


def test_a_compiled_module_is_configured_like_the_module() -> None:
    model = Outer()
    compiled = spectral.configure(MX)(torch.compile(model, backend="spectral", options=OPTIONS))
    with Compiles() as plans:
        compiled(x())
    assert {row.a.format for row in plans[0].rows if row.a is not None} == {"mxfp4"}


def test_a_list_of_layers_is_configured_though_nobody_calls_it() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Inner() for _ in range(2))
            self.head = Inner()

        def forward(self, value: Tensor) -> Tensor:
            for layer in self.layers:
                value = layer(value)
            return self.head(value)

    model = Stack()
    spectral.exclude(model.layers)
    assert set(capture(model, x(), recipe="nvfp4-plain").reasons) == {"layers.0.up", "layers.1.up"}


def test_a_graph_break_inside_a_configured_module_loses_nothing() -> None:
    class Breaks(Inner):
        def forward(self, value: Tensor) -> Tensor:
            value = self.up(value)
            torch._dynamo.graph_break()
            return self.up(value)

    model = Outer(Breaks())
    spectral.exclude(model)
    with Compiles() as plans:
        torch.compile(model, backend="spectral", options=OPTIONS)(x())
    assert len(plans) == 3
    assert not any(plan.quantized for plan in plans)


def test_two_modules_of_a_class_share_no_code_once_one_is_configured() -> None:
    plain, kept = Outer(), Outer()
    spectral.exclude(kept)

    def forward(module: nn.Module, value: Tensor) -> Tensor:
        return module(value)

    for order in ((plain, kept), (kept, plain)):
        with Compiles() as plans:
            compiled = torch.compile(forward, backend="spectral", options=OPTIONS)
            for module in order:
                compiled(module, x())
        assert [bool(plan.quantized) for plan in plans] == [module is plain for module in order]


def test_layers_keep_their_names_under_a_decorator() -> None:
    @spectral.configure()
    def step(model: nn.Module, value: Tensor) -> Tensor:
        return model(value)

    (graph,) = spectral.explain(step, Outer(), x()).graphs
    assert {product.plan.layer for product in graph.products} == {"first.up", "second.up"}


def test_settings_may_need_what_they_meet() -> None:
    model = Outer()
    spectral.configure(rules=[Rule(activations=Operand(center=True))])(model.first)
    assert capture(model, x(), recipe="averis").row("first.up", "fprop").centered
    with pytest.raises(ValueError, match="needs MeanCenter"):
        capture(model, x(), recipe="nvfp4-plain")
