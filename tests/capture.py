"""Compile a tiny model without a C++ compiler, run it forward and backward, and keep what the backend did."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

import spectral_compile
from spectral_compile.pipeline import observe
from spectral_compile.plan import GemmPlan, Plan

Loss = Callable[[Any], Tensor]


@dataclass
class Run:
    """The result of a call, and the gradient of each parameter and input that has one, by name."""

    output: Any = None
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Capture(Run):
    """plans: one a graph. stages: for each graph, a copy of it, less dead nodes, before the first pass ("joint") and
    after each.
    """

    plans: list[Plan] = field(default_factory=list)
    stages: list[dict[str, fx.Graph]] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        assert len(self.plans) == 1, f"{len(self.plans)} graphs, not one"
        return self.plans[0]

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        assert len(self.stages) == 1, f"{len(self.stages)} graphs, not one"
        return self.stages[0]

    @property
    def final(self) -> fx.Graph:
        return self.graphs["quantize_fp4"]

    def row(self, layer: str, role: str) -> GemmPlan:
        """The one plan row of a layer in a role."""
        (found,) = (row for row in self.plan.rows if (row.layer, row.role) == (layer, role))
        return found

    @property
    def roles(self) -> Counter[tuple[str, str]]:
        """How many products there are of each layer in each role."""
        return Counter((row.layer, row.role) for row in self.plan.rows)

    @property
    def reasons(self) -> dict[str, str]:
        """For each forward linear left alone, by layer, why."""
        return {row.layer: row.reason for row in self.plan.rows if row.role == "fprop" and row.reason}


def capture(
    model: Any,
    *inputs: Any,
    loss: Loss | None = None,
    dynamic: bool | None = None,
    autocast: torch.dtype | None = None,
    seed: int | None = 0,
    training: bool = True,
    **options: Any,
) -> Capture:
    """Run `model(*inputs)` compiled afresh with `options`, then backward from `loss(output)` (from a fixed projection
    of the output where there is no loss). Afterwards neither parameters nor inputs hold gradients.
    """
    captured = Capture()
    torch._dynamo.reset()

    def keep(stage: str, graph: fx.Graph, plan: Plan) -> None:
        if stage == "joint":
            captured.plans.append(plan)
            captured.stages.append({})
        captured.stages[-1][stage] = copy_of(graph)

    stop = observe(keep)
    try:
        spectral_compile.manual_seed(seed)
        compiled = compiled_eagerly(model, dynamic=dynamic, **options)
        run = gradients(compiled, model, *inputs, loss=loss, autocast=autocast, training=training)
    finally:
        stop()
        spectral_compile.manual_seed(None)
    captured.output, captured.gradients = run.output, run.gradients
    return captured


def compiled_eagerly(model: Any, dynamic: bool | None = None, **options: Any) -> Any:
    """torch.compile with this backend, run operator by operator; with mean removal, unless told otherwise."""
    options = {"codegen": "eager", "recipe": "averis", **options}
    return torch.compile(model, backend="spectral", dynamic=dynamic, options=options)


def gradients(
    call: Any,
    model: Any,
    *inputs: Any,
    loss: Loss | None = None,
    autocast: torch.dtype | None = None,
    training: bool = True,
) -> Run:
    """`call(*inputs)` and its gradients: `call` is the model itself, or it compiled."""
    leaves = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    leaves |= {f"input{i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        if not training:
            with torch.no_grad():
                return Run(call(*inputs))
        output = call(*inputs)
        total = loss(output) if loss is not None else projection(output)
    total.backward()
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    return Run(output, found)


def projection(output: Any) -> Tensor:
    """A scalar whose gradient differs in every element of the output."""
    if isinstance(output, (tuple, list)):
        return torch.stack([projection(o) for o in output]).sum()
    if output.dim() == 0:
        return output
    return (output.float() * torch.cos(torch.arange(output.numel()).view(output.shape) * 0.7 + 0.3)).sum()


def copy_of(graph: fx.Graph) -> fx.Graph:
    """A copy with the nodes' names and metadata, less dead nodes."""
    twin = fx.Graph()
    result = twin.graph_copy(graph, {})
    twin.output(result)
    twin.output_node().meta = copy.copy(graph.output_node().meta)
    twin.eliminate_dead_code()
    return twin


def count(graph: fx.Graph, name: str) -> int:
    """How many calls of an operator ("aten.mm", "spectral.quantize") a graph holds."""
    return len(calls(graph, name))


def calls(graph: fx.Graph, name: str) -> list[fx.Node]:
    """The calls of an operator, in order."""
    return [node for node in graph.nodes if str(node.target).startswith(f"{name}.")]


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal names, and for each the error's norm at most `tolerance` of the expected norm."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
