"""Options: what the user may say, validated into frozen data, and the recipes that name sets of passes.

Everything here prints canonically, because all of it goes into the compile cache's key.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from spectral_compile.errors import SpectralValueError
from spectral_compile.rules import compile_pattern

_STRICT = ConfigDict(extra="forbid", strict=True)
Format = Literal["nvfp4", "identity"]


@dataclass(frozen=True, config=_STRICT)
class MeanCenter:
    """Take the token mean out of activations and of gradients before they are quantised (Averis), and add the product
    of the mean with the other operand back in high precision.

    min_rows: with fewer tokens nothing is centred, as the mean would carry most of the operand past the quantiser.
    """

    activations: bool = True
    gradients: bool = True
    min_rows: Annotated[int, Field(ge=1)] = 32


@dataclass(frozen=True, config=_STRICT)
class QuantizeFP4:
    """Quantise both operands of fprop, dgrad and wgrad, with blocks along the axis that each product contracts.

    format: "nvfp4", or "identity", which rewrites everything and rounds nothing. weight_tile: 16 for 16 x 16 blocks
    (fprop and dgrad then share a weight's codes), 1 for 1 x 16. gradient_rounding: of the gradient operands of dgrad
    and wgrad.
    """

    format: Format = "nvfp4"
    weight_tile: Literal[1, 16] = 16
    gradient_rounding: Literal["stochastic", "nearest"] = "stochastic"

    @property
    def rounds_stochastically(self) -> bool:
        """Whether gradients are rounded stochastically, so that training graphs need a seed."""
        return self.gradient_rounding == "stochastic" and self.format != "identity"


PassConfig = MeanCenter | QuantizeFP4
_Pass = TypeVar("_Pass", MeanCenter, QuantizeFP4)

RECIPES: Mapping[str, tuple[PassConfig, ...]] = MappingProxyType(
    {
        "none": (),  # Inductor as it is
        "identity": (MeanCenter(), QuantizeFP4(format="identity")),  # the whole rewrite, without the rounding
        "nvfp4-plain": (QuantizeFP4(),),
        "averis": (MeanCenter(), QuantizeFP4()),
    }
)
DEFAULT_RECIPE = "averis"


@dataclass(frozen=True, config=_STRICT)
class Options:
    """What `torch.compile(..., backend="spectral", options={...})` takes.

    recipe: a name in RECIPES.
    passes: pass configurations, each of which replaces the recipe's pass of the same class, or joins it.
    exclude: regular expressions on a layer's path; GEMMs of layers that match stay in high precision.
    inference: whether graphs without a backward are quantised as well ("quantized" or "high-precision").
    codegen: "inductor", or "eager" to run the rewritten graph operator by operator (no C++ compiler needed).
    carrier: the arithmetic that carries FP4 products ("auto" asks the device).
    inductor: options handed on to Inductor, as `torch.compile(backend="inductor", options=...)` takes them.
    """

    recipe: str = DEFAULT_RECIPE
    passes: tuple[PassConfig, ...] = ()
    exclude: tuple[str, ...] = ()
    inference: Literal["quantized", "high-precision"] = "quantized"
    codegen: Literal["inductor", "eager"] = "inductor"
    carrier: Literal["auto", "bf16", "fp32"] = "auto"
    inductor: tuple[tuple[str, Any], ...] = ()

    def resolved(self) -> tuple[PassConfig, ...]:
        """The passes to run: the recipe's, each replaced by one of the same class in `passes`, then the rest."""
        chosen: dict[type, PassConfig] = {type(p): p for p in RECIPES[self.recipe]}
        chosen.update({type(p): p for p in self.passes})
        return tuple(chosen.values())

    def find(self, kind: type[_Pass]) -> _Pass | None:
        """The configuration of one pass, or None where it does not run."""
        return next((p for p in self.resolved() if isinstance(p, kind)), None)


def parse_options(options: Mapping[str, Any] | None) -> Options:
    """Validate what the user wrote. Raises a ValueError that names the key, the value and the nearest valid one."""
    given = dict(options or {})
    names = [f.name for f in dataclasses.fields(Options)]
    for key in given:
        check_name("option", key, names)
    for key in ("passes", "exclude"):
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
    if isinstance(given.get("exclude"), str):
        given["exclude"] = (given["exclude"],)
    if isinstance(given.get("inductor"), Mapping):
        given["inductor"] = tuple(sorted(given["inductor"].items(), key=str))
    try:
        parsed = Options(**given)
    except pydantic.ValidationError as error:
        raise SpectralValueError(_explain(error)) from None
    check_name("recipe", parsed.recipe, list(RECIPES))
    kinds = [type(p).__name__ for p in parsed.passes]
    for kind in {k for k in kinds if kinds.count(k) > 1}:
        raise SpectralValueError(f"option 'passes' holds {kind} more than once; which one is meant?")
    for pattern in parsed.exclude:
        compile_pattern(pattern)
    return parsed


def check_name(what: str, given: Any, valid: list[str]) -> None:
    """Raise a ValueError that names `given` and the nearest valid name, unless it is one."""
    if given not in valid:
        rest = f"; {what}s are {_listed(valid)}" if len(valid) < 20 else ""
        raise SpectralValueError(f"unknown {what} {given!r}{_nearest(str(given), valid)}{rest}")


def disabled_by_environment() -> bool:
    """SPECTRAL_DISABLE=1 switches every pass off, for debugging."""
    return os.environ.get("SPECTRAL_DISABLE", "") not in ("", "0")


class Watch:
    """All that decides how a frame is compiled, as a value that Dynamo's guards can compare at each call.

    Without it, code compiled under one configuration would silently serve another: Dynamo keys its code by the
    options *object*, which the user may change in place, and knows nothing of the environment.
    """

    def __init__(self, options: Mapping[str, Any] | None) -> None:
        self.options = options  # held, so that identities stay unique

    @property
    def key(self) -> str:
        """Changes when the configuration does."""
        return f"{disabled_by_environment()} {dict(self.options or {})!r}"


def watch(options: Mapping[str, Any] | None) -> str:
    """The name, in this module, of the Watch on an options object."""
    for name, known in _watched.items():
        if known.options is options:
            return name
    name = f"_watch_{len(_watched)}"
    globals()[name] = _watched[name] = Watch(options)
    return name


_watched: dict[str, Watch] = {}


_EXPECTED = {  # where pydantic would speak of tuples
    "recipe": f"one of {', '.join(map(repr, RECIPES))}",
    "passes": f"a list of passes: {', '.join(f'{kind.__name__}(...)' for kind in get_args(PassConfig))}",
    "exclude": "a list of regular expressions",
    "inductor": "a dict of Inductor's options",
}


def _explain(error: pydantic.ValidationError) -> str:
    """One line for the first thing wrong: option, value, what is valid."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    value = first["input"]
    field = next((f for f in dataclasses.fields(Options) if f.name == key), None)
    choices = [c for c in get_args(field.type) if isinstance(c, str)] if field else []
    if choices:
        hint = f"{_nearest(str(value), choices)}; it is one of {_listed(choices)}"
    else:
        hint = f"; it is {_EXPECTED[key]}"
    return f"option {key!r} cannot be {value!r}{hint}"


def _nearest(word: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names)
