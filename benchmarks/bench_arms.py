"""The arms: ways to run the same training step, from plain Inductor to four bits."""

import contextlib
import copy
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import spectral_compile
from benchmarks.bench_fake_quant import fake_quantize
from benchmarks.bench_models import Workload
from spectral_compile.config import DEFAULT_RECIPE
from spectral_compile.recipes import RECIPES, QuantizeFP4

BASELINE = "inductor bf16"


@dataclass(frozen=True)
class Arm:
    """backend: of torch.compile, empty for none. recipe: for the spectral backend.

    quantizer: by which linears fake-quantise, empty where they are left alone. autocast: to bf16.
    """

    backend: str
    recipe: str = ""
    quantizer: str = ""
    autocast: bool = True
    numerics: int = 0  # operands are measured in every so many steps; 0: never

    def options(self, codegen: str) -> dict[str, Any] | None:
        if not self.recipe:
            return None
        return {"recipe": self.recipe, "codegen": codegen, **({"numerics": self.numerics} if self.numerics else {})}


def quantizing_recipes() -> list[str]:
    """Of recipes with the same passes only the first."""
    by_passes: dict[object, str] = {}
    for name, passes in RECIPES.items():
        if any(isinstance(p, QuantizeFP4) and p.format != "identity" for p in passes):
            by_passes.setdefault(passes, name)
    return list(by_passes.values())


ARMS: Mapping[str, Arm] = {
    "inductor fp32": Arm("inductor", autocast=False),
    BASELINE: Arm("inductor"),
    "eager bf16": Arm(""),
    **{f"spectral {recipe}": Arm("spectral", recipe) for recipe in RECIPES},
    "eager fake-quantised": Arm("", quantizer="plain"),
    "inductor fake-quantised": Arm("inductor", quantizer="plain"),
    "eager torchao": Arm("", quantizer="torchao"),
    "inductor torchao": Arm("inductor", quantizer="torchao"),
}


def chosen(names: str) -> list[str]:
    """The arms of a comma list, "default" or "all". Raises ValueError for one that is none."""
    recipes = quantizing_recipes()
    if names == "default":
        usual = {RECIPES[name] for name in (DEFAULT_RECIPE, "nvfp4-plain", "averis", "mxfp4")}
        recipes = [name for name in recipes if RECIPES[name] in usual]
    if names in ("default", "all"):
        return [name for name, arm in ARMS.items() if not arm.recipe or arm.recipe in recipes]
    found = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in found:
        if name not in ARMS:
            raise ValueError(f"no arm {name!r}; arms are {', '.join(ARMS)}, or default, or all")
    return found


class Runner:
    """A workload made ready for one arm. All runners of a workload share its parameters, and so their memory."""

    def __init__(self, arm: Arm, workload: Workload, codegen: str = "inductor") -> None:
        self.arm, self.workload = arm, workload
        shared = {id(tensor): tensor for tensor in (*workload.model.parameters(), *workload.model.buffers())}
        self.model = copy.deepcopy(workload.model, memo=dict(shared))
        if arm.quantizer:
            fake_quantize(self.model, arm.quantizer)
        if arm.backend:
            _own_code(self.model)
            self.model.compile(backend=arm.backend, options=arm.options(codegen), fullgraph=True, dynamic=False)
        if arm.recipe:
            spectral_compile.manual_seed(0)

    def forward(self) -> Tensor:
        device = self.workload.inputs[0].device.type
        with torch.autocast(device, torch.bfloat16) if self.arm.autocast else contextlib.nullcontext():
            output: Tensor = self.model(*self.workload.inputs)
        return output

    def backward(self, output: Tensor) -> None:
        output.backward(self.workload.gradient)

    def zero_grad(self) -> None:
        for tensor in (*self.model.parameters(), *self.workload.inputs):
            tensor.grad = None

    def step(self) -> None:
        """One whole step: forward, backward, gradients freed. The optimizer is the same for all arms and left out."""
        self.backward(self.forward())
        self.zero_grad()


def _own_code(model: nn.Module) -> None:
    """Give the model a forward with a code object of its own.

    Dynamo keeps what it compiled by code object: arms that share one would evict each other, or meet its limit.
    """
    kind = type(model)
    forward = kind.forward
    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, "forward", forward.__defaults__)
    model.__class__ = type(kind.__name__, (kind,), {"forward": own, "__module__": kind.__module__})
