"""Declaring a spectral:: operator: schema, reference, fake; and the variant that writes into given tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake

NAMESPACE = "spectral"
_library = Library(NAMESPACE, "DEF")
_declared: dict[str, tuple[str, "Kernel"]] = {}  # schema and fake

_PLANNED = "_planned"

Kernel = Callable[..., Any]


def declare(schema: str, *, reference: Kernel, fake: Kernel) -> None:
    """Register `spectral::<schema>`: functional, without aliasing; the reference serves every device.

    Inductor may hand over inputs in any layout, so kernels read strides; their outputs are always contiguous. A twin,
    `spectral::<name>_planned`, has an overload `out` as well: see `planned`.
    """
    name = schema.partition("(")[0]
    _declared[name] = schema, fake
    for called in (name, f"{name}{_PLANNED}"):
        _library.define(f"{called}{schema.removeprefix(name)}", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(called, reference, "CompositeExplicitAutograd")
        register_fake(f"{NAMESPACE}::{called}", fake, lib=_library)
    if _can_be_planned(schema):
        _library.define(_out_schema(schema), tags=(torch.Tag.pt2_compliant_tag, torch.Tag.out))
        _library.impl(
            f"{name}{_PLANNED}.out", _called_with_out(schema, _copying(reference)), "CompositeExplicitAutograd"
        )


def implement(name: str, kernel: Kernel, dispatch_key: str) -> None:
    """Give one device (dispatch key "CPU", "CUDA") a faster kernel with the same numbers.

    `kernel` takes the operator's arguments and, as `out`, the tensors to write: as the operator's fake lays them out.
    """
    schema, fake = _declared[name]

    def allocating(*arguments: Any, **named: Any) -> Any:
        out = fake(*arguments, **named)
        kernel(*arguments, **named, out=_tuple(out))
        return out

    _library.impl(name, allocating, dispatch_key)
    _library.impl(f"{name}{_PLANNED}", allocating, dispatch_key)
    if _can_be_planned(schema):
        _library.impl(f"{name}{_PLANNED}.out", _called_with_out(schema, kernel), dispatch_key)


def fake_of(name: str) -> Kernel:
    """The fake kernel of an operator: what lays its results out."""
    return _declared[name][1]


def planned(operator: Any) -> Any:
    """The twin of an operator whose results Inductor (2.13 and later) places in memory that it plans, and reuses; for
    calls all of whose results are read. None where there is none.

    For Inductor names results that nothing reads, and never allocates them; and it loses the order of the arguments of
    an operator with one result where a tensor is absent.
    """
    name = operator._schema.name.partition("::")[2]
    if name not in _declared or not _can_be_planned(_declared[name][0]):
        return None
    return getattr(torch.ops.spectral, f"{name}{_PLANNED}").default


def copy_into(out: tuple[Tensor, ...], results: Tensor | tuple[Tensor, ...]) -> None:
    """Results of an operator that did not write them into `out` itself."""
    for to, result in zip(out, _tuple(results), strict=True):
        to.copy_(result)


def _can_be_planned(schema: str) -> bool:
    return "Tensor?" not in schema or len(_out_names(schema)) > 1


def _out_names(schema: str) -> list[str]:
    """What the overload `out` calls its results: one `out`, several `out0`, `out1` and so on."""
    count = schema.rpartition(" -> ")[2].count("Tensor")
    return ["out"] if count == 1 else [f"out{i}" for i in range(count)]


def _out_schema(schema: str) -> str:
    name, _, rest = schema.partition("(")
    arguments = rest.rpartition(") -> ")[0]
    aliases = {out: f"Tensor({chr(ord('a') + i)}!)" for i, out in enumerate(_out_names(schema))}
    outs = ", ".join(f"{alias} {out}" for out, alias in aliases.items())
    return f"{name}{_PLANNED}.out({arguments}, *, {outs}) -> ({', '.join(aliases.values())})"


def _copying(kernel: Kernel) -> Kernel:
    """A kernel that returns its results, as one that writes them into `out`."""
    return lambda *arguments, out, **named: copy_into(out, kernel(*arguments, **named))


def _called_with_out(schema: str, kernel: Kernel) -> Kernel:
    """The overload `out`: its results come as keywords, and are returned."""
    names = _out_names(schema)

    def called(*arguments: Any, **named: Any) -> Any:
        out = tuple(named.pop(name) for name in names)
        kernel(*arguments, **named, out=out)
        return out[0] if len(out) == 1 else out

    return called


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results
