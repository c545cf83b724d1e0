"""`configure` and `exclude`: settings that belong to a function, a module class or a module, and not to its code.

A module's settings are for the products inside it, a function's for all that it runs. They are looked for when a graph
is compiled (`scopes.py`), and a change of them compiles anew (`watch.py`).
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import field
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from spectral_compile.config import DEFAULT_RECIPE, PASSES, Options, parse_options
from spectral_compile.errors import SpectralValueError
from spectral_compile.recipes import PassConfig, Rule
from spectral_compile.validation import settings

ATTRIBUTE = "_spectral_configuration"  # of a module class or a module
ANNOTATION = "spectral_configuration "  # before the key: of nodes that a decorated function made in compiled code

_Target = TypeVar("_Target", bound=Callable[..., Any])


@settings
class Configuration:
    """What `configure` takes: some of the options, which replace or precede those from farther out."""

    CALLED: ClassVar[str] = "setting"

    passes: tuple[PassConfig, ...] = field(default=(), metadata={"expected": f"passes: {PASSES}"})
    recipe: str | None = None
    rules: tuple[Rule, ...] = ()
    exclude: tuple[str, ...] = ()
    excluded: bool = False

    def over(self, options: Options) -> Options:
        """`options` with this in front: a recipe of its own puts aside the passes from farther out, not the rules."""
        outer = () if self.recipe else options.passes
        return dataclasses.replace(
            options,
            recipe=self.recipe or options.recipe,
            passes=tuple({type(p): p for p in (*outer, *self.passes)}.values()),
            rules=(*self.rules, *options.rules),
            exclude=(*self.exclude, *options.exclude),
        )

    def inside(self, outer: "Configuration | None") -> "Configuration":
        """Both as one, this one in front."""
        if outer is None:
            return self
        passes = () if self.recipe else outer.passes
        return Configuration(
            passes=tuple({type(p): p for p in (*passes, *self.passes)}.values()),
            recipe=self.recipe or outer.recipe,
            rules=(*self.rules, *outer.rules),
            exclude=(*self.exclude, *outer.exclude),
            excluded=self.excluded or outer.excluded,
        )


_of_function: ContextVar[Configuration | None] = ContextVar("spectral_configuration", default=None)
_annotated: dict[str, Configuration] = {}  # by what annotates nodes: a key for each, so that nested ones all stay
_modules: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
_changes = 0
_any_module = False


def configure(
    *passes: PassConfig,
    recipe: str | None = None,
    rules: Iterable[Rule] = (),
    exclude: str | Iterable[str] = (),
) -> Callable[[_Target], _Target]:
    """Decorator that says how products run in four bits, for a function, an `nn.Module` class or a module.

    passes: each replaces the recipe's pass of the same class, or joins it. recipe: a name in RECIPES. rules, exclude:
    tried before those in `options=`. On a module or a class: for the products inside it, whatever compiles it. On a
    function, above or below `@torch.compile`: for all that it runs. Inner settings go before outer ones, those on
    modules before those on functions, and all of them before `options=` and its recipe.

    >>> configure(QuantizeFP4(format="mxfp4"))(model.layers[0])

    Modules and classes are returned as they are; what is on them already is kept unless it is replaced. Raises
    ValueError for settings that are none; those that do not go together are refused where they meet.
    """
    try:
        checked = parse_options(
            {
                "passes": passes,
                "recipe": DEFAULT_RECIPE if recipe is None else recipe,
                "rules": rules if isinstance(rules, Rule) else tuple(rules),
                "exclude": exclude if isinstance(exclude, str) else tuple(exclude),
            },
            together=False,  # the backend sees what they meet
        )
    except SpectralValueError as error:
        raise ValueError(str(error)) from None
    own = Configuration(checked.passes, recipe, checked.rules, checked.exclude)
    return lambda target: _attach(target, own)


def exclude(target: _Target) -> _Target:
    """Decorator: a function, an `nn.Module` class or a module, all of whose products stay in high precision.

    >>> exclude(model.lm_head)
    """
    return _attach(target, Configuration(excluded=True))


def of_holder(holder: type | nn.Module) -> Configuration | None:
    """What is configured for a module class, whose subclasses have it too, or for a module beside its class."""
    if isinstance(holder, nn.Module):
        return holder.__dict__.get(ATTRIBUTE)
    found = None
    for base in reversed(holder.__mro__):
        own = base.__dict__.get(ATTRIBUTE)
        found = own.inside(found) if own is not None else found
    return found


def enclosing(module: nn.Module) -> list[nn.Module]:
    """The configured modules that hold this one, outermost first, whether or not a call of them led here: a list of
    layers is never called, and a graph that begins inside a module knows nothing of its caller.
    """
    around = []
    for holder in tuple(_modules.values()):
        inside = list(holder.modules())
        if holder is not module and any(module is one for one in inside):
            around.append((len(inside), holder))
    return [holder for _, holder in sorted(around, key=lambda pair: -pair[0])]


def remember(module: nn.Module) -> None:
    """Know a configured module that was not configured itself: a copy of one that was."""
    global _any_module
    _modules[str(id(module))] = module
    _any_module = True


def any_module() -> bool:
    """Whether any module, beside classes, was ever configured: what is asked at each call must not depend on when the
    garbage collector takes the last one, or code would be compiled anew at some call.
    """
    return _any_module


def inside_configured() -> Iterator[nn.Module]:
    """All configured modules, and those that they hold."""
    for holder in tuple(_modules.values()):
        yield from holder.modules()


def of_function() -> Configuration | None:
    """What the decorated functions around this call say."""
    return _of_function.get()


def of_annotation(annotation: str) -> Configuration:
    """What a decorated function inside compiled code says."""
    return _annotated[annotation]


def changes() -> int:
    """Grows with every call of `configure` and `exclude`."""
    return _changes


def _attach(target: Any, own: Configuration) -> Any:
    global _changes
    if isinstance(target, nn.Module) or (isinstance(target, type) and issubclass(target, nn.Module)):
        holder = target._orig_mod if hasattr(target, "_orig_mod") else target  # of a module that is compiled
        setattr(holder, ATTRIBUTE, own.inside(holder.__dict__.get(ATTRIBUTE)))
        if isinstance(holder, nn.Module):
            remember(holder)
        _changes += 1
        return target
    if not callable(target):
        raise ValueError(f"a function, an nn.Module class or a module is configured, not {target!r}")
    return _decorated(target, own)


def _decorated(function: Callable[..., Any], own: Configuration) -> Callable[..., Any]:
    annotation = f"{ANNOTATION}{own!r}"
    _annotated[annotation] = own

    # The arguments' names tell `plain_path` that they are no part of a layer's path. What torch.compile left on a
    # function's __dict__ is of that function alone.
    @functools.wraps(function, updated=())
    def configured(*spectral_arguments: Any, **spectral_named: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # where setting a context variable would break the graph
            with torch.fx.traceback.annotate({annotation: ""}):
                return function(*spectral_arguments, **spectral_named)
        token = _of_function.set(own.inside(_of_function.get()))
        try:
            return function(*spectral_arguments, **spectral_named)
        finally:
            _of_function.reset(token)

    return configured
