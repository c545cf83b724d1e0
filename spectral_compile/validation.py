"""Turning pydantic's findings into one line that names the setting, the value and the nearest valid one."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform, get_args

import pydantic
import pydantic.dataclasses
from pydantic import ConfigDict

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: _Class) -> _Class:
    """A frozen dataclass whose values are validated; what is wrong with them is a ValueError of one line.

    A field's metadata may say what is `expected` of it, where the annotation alone would not read well.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))(cls)
    validated: Callable[..., None] = made.__init__

    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(_explain(made, error)) from None

    made.__init__ = explained
    return made


def check_name(what: str, given: Any, valid: Iterable[str]) -> None:
    """Raise a ValueError that names `given` and the nearest valid name, unless it is one."""
    names = list(valid)
    if given not in names:
        kind = what.partition(" in ")[0]
        plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
        rest = f"; {plural} are {_listed(names) or 'none'}" if len(names) < 20 else ""
        raise ValueError(f"unknown {what} {given!r}{_nearest(str(given), names)}{rest}")


def _explain(kind: Any, error: pydantic.ValidationError) -> str:
    """One line for the first thing wrong."""
    first = error.errors()[0]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    name, value = (str(first["loc"][0]) if first["loc"] else ""), first["input"]
    if not name:  # raised by the class's own __post_init__
        return f"{kind.__name__}: {first['ctx']['error']}"
    if name not in fields:
        known = list(fields)
        return f"{kind.__name__} has no setting {name!r}{_nearest(name, known)}; its settings are {_listed(known)}"
    shown = repr(value) if len(repr(value)) < 80 else f"{type(value).__name__}(...)"
    subject = f"{getattr(kind, 'CALLED', kind.__name__ + ' setting')} {name!r} cannot be {shown}"
    if "expected" in fields[name].metadata:
        return f"{subject}; it is {fields[name].metadata['expected']}"
    choices = _choices(fields[name].type)
    if choices:
        return f"{subject}{_nearest(str(value), choices)}; it is one of {_listed(choices)}"
    return f"{subject}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _choices(annotation: Any) -> list[str]:
    """The strings that an annotation allows, those of nested Literals too."""
    found = [a for a in get_args(annotation) if isinstance(a, str)]
    return found + [c for a in get_args(annotation) if not isinstance(a, str) for c in _choices(a)]


def _nearest(word: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names)
