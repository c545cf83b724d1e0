"""Which products of a workload a recipe quantises, and which kernels of ours a step calls, on what."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from benchmarks.bench_arms import Arm, Runner
from benchmarks.bench_models import Workload
from spectral_compile._torch import OpOverload
from spectral_compile.pipeline import observe
from spectral_compile.plan import Plan

_MEAN = ("mean", "rows", "left", "right")  # arguments by which a mean leaves an operand, and comes back


@dataclass(frozen=True)
class Layout:
    """Of a tensor that an operator was given."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made_up(self) -> Tensor:
        """Values that any operator takes: ones for scales and seeds, bytes for codes, else normal numbers."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        if self.dtype == torch.uint8:
            return tensor.random_(0, 256)
        if self.dtype in (torch.bfloat16, torch.float32) and len(self.shape) > 1:
            return tensor.normal_()
        return tensor.copy_(torch.ones(self.shape))


@dataclass(frozen=True)
class Call:
    """A call of a spectral:: operator, its tensors known by their layout. Equal calls take equal time."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __getitem__(self, argument: str) -> Any:
        """None where the operator has no such argument."""
        return dict(self.arguments).get(argument)

    def ready(self) -> dict[str, Any]:
        """Its arguments, with made-up tensors."""
        return {name: value.made_up() if isinstance(value, Layout) else value for name, value in self.arguments}

    def operator(self) -> OpOverload:
        overload: OpOverload = getattr(torch.ops.spectral, self.name).default
        return overload

    def without_mean(self) -> "Call":
        return Call(
            self.name,
            tuple((n, None if n in _MEAN and isinstance(v, Layout) else v) for n, v in self.arguments),
        )

    def title(self) -> str:
        """The operator, with what makes its calls differ."""
        if self.name == "scaled_mm":
            k_last = "".join("T" if self[flag] else "N" for flag in ("a_k_last", "b_k_last"))
            return f"scaled_mm {self['m']} x {self['n']} x {self['k']} {k_last}{', rank one' if self['right'] else ''}"
        first: Layout = self.arguments[0][1]
        marks = [f"{self.name} {' x '.join(map(str, first.shape))}", str(first.dtype).removeprefix("torch.")]
        marks += [f"axis {self['axis']}"] if self["axis"] is not None else []
        marks += ["square"] if (self["tile_rows"] or 1) > 1 else []
        marks += [word for word, name in (("Hadamard", "hadamard"), ("centred", "mean")) if self[name]]
        marks += [word for word, name in (("stochastic", "seed"), ("with amax", "amax")) if self[name]]
        return ", ".join(marks)


def plan_of(workload: Workload, recipe: str) -> Plan:
    """Compile the workload with a recipe, only to look at it: it runs forward once, without Inductor."""
    seen: list[Plan] = []

    def look(stage: str, graph: fx.Graph, plan: Plan) -> None:
        if stage == "joint":
            seen.append(plan)

    stop = observe(look)
    try:
        Runner(Arm("spectral", recipe), workload, codegen="eager").forward()
    finally:
        stop()
    (only,) = seen
    return only


def calls_of(step: Callable[[], object]) -> Counter[Call]:
    """How often a step calls each kernel, forward and backward, as it runs."""
    with _recorded() as calls:
        step()
    return calls


@contextmanager
def _recorded() -> Iterator[Counter[Call]]:
    """While this lasts, calls of our operators are written down: compiled code looks each up and calls it."""
    calls: Counter[Call] = Counter()
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    packets = {getattr(torch.ops.spectral, name.partition(".")[0]) for space, _, name in names if space == "spectral"}
    overloads = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    originals = [overload._op for overload in overloads]

    def recording(overload: OpOverload, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            calls[_call(overload, arguments, named)] += 1
            return original(*arguments, **named)

        return run

    try:
        for overload, original in zip(overloads, originals, strict=True):
            overload._op = recording(overload, original)
        yield calls
    finally:
        for overload, original in zip(overloads, originals, strict=True):
            overload._op = original


def _call(overload: OpOverload, arguments: tuple[Any, ...], named: dict[str, Any]) -> Call:
    names = [argument.name for argument in overload._schema.arguments if not argument.is_out]
    given = {**dict(zip(names, arguments, strict=False)), **{n: v for n, v in named.items() if n in names}}
    known = tuple((name, 0 if name == "stream" else _known(value)) for name, value in given.items())
    return Call(
        overload._schema.name.partition("::")[2].removesuffix("_planned"), known
    )  # whatever the stream: its bits take as long


def _known(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), tuple(value.stride()), value.dtype)
    return value
