"""Users' passes: their order, their names, what they see, and that caches and guards see them."""

import functools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx, nn

from spectral_compile import explain, register_pass, registry, unregister_pass
from spectral_compile.registry import pass_names
from tests.capture import capture, compiled_eagerly


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    registry._registered.clear()


def nothing(graph: fx.Graph, options: Any) -> None:
    """Changes nothing."""


def twice_the_relu(graph: fx.Graph, options: Any) -> None:
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        with graph.inserting_after(node):
            double = graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
        double.meta = {**node.meta}
        node.replace_all_uses_with(double, delete_user_cb=lambda user, double=double: user is not double)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))


def test_order_is_that_of_before_and_after_and_else_of_registration() -> None:
    assert register_pass(nothing) is nothing
    register_pass(name="first", before="mean_center")(nothing)
    register_pass(name="between", after="mean_center", before=["hadamard"])(nothing)
    register_pass(name="second", after="first", before="mean_center")(nothing)
    expected = ["first", "second", "mean_center", "between", "hadamard", "quantize_fp4", "numerics", "nothing"]
    assert pass_names("joint") == expected
    ours = ["weight_smoothing", "headwise_router"], ["to_carriers", "pair_quantizers", "plan_memory"]
    assert pass_names() == [*ours[0], *expected, *ours[1]]


def test_a_cycle_is_refused_and_leaves_what_was_there() -> None:
    register_pass(name="a", after="quantize_fp4")(nothing)
    with pytest.raises(ValueError, match=r"joint passes cannot be ordered: .* before .* before"):
        register_pass(name="b", after="a", before="mean_center")(nothing)
    assert pass_names("joint") == ["mean_center", "hadamard", "quantize_fp4", "numerics", "a"]


def test_a_pass_may_name_one_that_is_registered_later_but_not_one_that_never_is() -> None:
    register_pass(name="early", before="late")(nothing)
    with pytest.raises(ValueError, match=r"pass 'early' is to run before or after an unknown joint pass 'late'"):
        pass_names("joint")
    register_pass(name="late")(nothing)
    assert pass_names("joint")[-2:] == ["early", "late"]


def test_a_name_of_another_stage_is_told_apart() -> None:
    register_pass(name="traced", stage="dynamo", before="quantize_fp4")(nothing)
    with pytest.raises(ValueError, match="pass 'traced' is of stage 'dynamo', and 'quantize_fp4' of stage 'joint'"):
        pass_names("dynamo")


def test_bad_registrations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown stage 'joints' \(did you mean 'joint'\?\)"):
        register_pass(stage="joints")(nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'quantize_fp4' is a pass of this library"):
        register_pass(name="quantize_fp4")(nothing)
    with pytest.raises(ValueError, match=r"pass 'partial' has no source .* version="):
        register_pass(name="partial")(functools.partial(nothing))
    register_pass(name="partial", version=1)(functools.partial(nothing))
    with pytest.raises(ValueError, match="a pass is a function of a graph and options, not 'joint'"):
        register_pass("joint")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="unknown registered pass 'other'"):
        unregister_pass("other")


def test_the_digest_changes_with_source_version_and_place() -> None:
    digests = [registry.digest()]
    for register in (
        register_pass(name="mine"),
        register_pass(name="mine", version=1),
        register_pass(name="mine", version=2),
        register_pass(name="mine", version=2, after="mean_center"),
    ):
        register(nothing)
        digests.append(registry.digest())
    register_pass(name="mine", version=2, after="mean_center")(twice_the_relu)
    digests.append(registry.digest())
    assert len(set(digests)) == len(digests)


def test_a_joint_pass_sees_the_rewritten_graph_and_the_options() -> None:
    seen: dict[str, Any] = {}

    @register_pass()
    def look(graph: fx.Graph, options: Any) -> None:
        seen["targets"] = {str(node.target) for node in graph.nodes}
        seen["recipe"] = options.recipe

    capture(small(), torch.randn(64, 32))
    assert "spectral.scaled_mm.default" in seen["targets"]
    assert seen["recipe"] == "averis"


@pytest.mark.parametrize("stage", ["joint", "dynamo"])
def test_a_pass_changes_what_is_computed_also_without_a_recipe(stage: Any) -> None:
    model, x = small(), torch.randn(64, 32)

    def twice_the_function(graph: fx.Graph, options: Any) -> None:
        for node in graph.find_nodes(op="call_function", target=torch.nn.functional.relu):
            with graph.inserting_after(node):
                double = graph.call_function(torch.mul, (node, 2.0))
            node.replace_all_uses_with(double, delete_user_cb=lambda user, double=double: user is not double)

    register_pass(stage=stage, name="doubled")(twice_the_relu if stage == "joint" else twice_the_function)
    expected = model[2](2 * model[1](model[0](x)))
    compiled = torch.compile(model, backend="spectral", options={"recipe": "none", "codegen": "eager"})
    torch.testing.assert_close(compiled(x), expected)
    off = {"recipe": "none", "codegen": "eager", "disable": ["doubled"]}
    torch.testing.assert_close(torch.compile(model, backend="spectral", options=off)(x), model(x))


def test_registering_and_forgetting_compile_anew() -> None:
    model, x = small(), torch.randn(64, 32)
    compiled = compiled_eagerly(model, recipe="none")
    plain = compiled(x)
    register_pass(name="doubled")(twice_the_relu)
    assert not torch.allclose(compiled(x), plain)
    unregister_pass("doubled")
    assert torch.equal(compiled(x), plain)


@pytest.mark.parametrize("codegen", ["eager", "inductor"])
def test_a_failing_pass_is_named(codegen: str) -> None:
    @register_pass()
    def broken(graph: fx.Graph, options: Any) -> None:
        raise KeyError("oh")

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"pass 'broken' failed: KeyError: 'oh'"):
        torch.compile(small(), backend="spectral", options={"codegen": codegen})(torch.randn(64, 32))


def test_a_pass_that_leaves_a_malformed_graph_is_named() -> None:
    @register_pass()
    def careless(graph: fx.Graph, options: Any) -> None:
        (node, *_) = graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        with graph.inserting_after(node):
            other = graph.call_function(torch.ops.aten.neg.default, (node,))
        node.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"pass careless left neg.* without meta"):
        compiled_eagerly(small())(torch.randn(64, 32))


def test_a_post_grad_pass_runs_on_both_graphs() -> None:
    seen: list[int] = []

    @register_pass(stage="post_grad", version=time.time_ns())  # no code from an earlier run
    def count_products(graph: fx.Graph, options: Any) -> None:
        seen.append(sum(str(node.target).startswith("spectral.product") for node in graph.nodes))

    torch._dynamo.reset()
    x = torch.randn(64, 32, requires_grad=True)
    torch.compile(nn.Linear(32, 16), backend="spectral", options={"recipe": "nvfp4-plain"})(x).sum().backward()
    assert seen == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(nn.Linear(32, 16), x)  # which runs none of them, and has nothing to warn of
