"""Options: what the user may say in `torch.compile(..., options={...})`, validated into frozen data.

Everything here prints canonically, because all of it goes into the compile cache's key.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal, TypeVar, get_args

from spectral_compile import policy
from spectral_compile.errors import SpectralValueError
from spectral_compile.recipes import (
    RECIPES,
    Hadamard,
    HeadwiseRouter,
    MeanCenter,
    Numerics,
    PassConfig,
    QuantizeFP4,
    Rule,
    WeightSmoothing,
)
from spectral_compile.registry import pass_names
from spectral_compile.validation import check_name, settings

DEFAULT_RECIPE = "auto"

_Pass = TypeVar("_Pass", MeanCenter, Hadamard, QuantizeFP4, WeightSmoothing, HeadwiseRouter)
PASSES = ", ".join(f"{kind.__name__}(...)" for kind in get_args(PassConfig))
PASS_NAMES: dict[type, str] = {
    MeanCenter: "mean_center",
    Hadamard: "hadamard",
    QuantizeFP4: "quantize_fp4",
    WeightSmoothing: "weight_smoothing",
    HeadwiseRouter: "headwise_router",
}
ALL = "all passes"  # what SPECTRAL_DISABLE=1 means


@settings
class Options:
    """What `torch.compile(..., backend="spectral", options={...})` takes.

    recipe: a name in RECIPES.
    passes: pass settings, each of which replaces the recipe's pass of the same class, or joins it.
    exclude: regular expressions on a layer's path; GEMMs of layers that match stay in high precision.
    rules: what is different for some GEMMs; the first that matches one counts, after `exclude`.
    inference: whether graphs without a backward are quantised as well ("quantized" or "high-precision").
    codegen: "inductor", or "eager" to run the rewritten graph operator by operator (no C++ compiler needed).
    carrier: the arithmetic that carries FP4 products: "auto" asks the device; see `lowering/carrier.py`.
    dump: a folder, into which each compiled graph writes a folder of its own: `report/dump.py`.
    numerics: Numerics(...), or a number N for Numerics(every=N): what quantisation does to operands, while training.
    disable: names of passes, ours or registered ones, that are left out.
    inductor: options handed on to Inductor, as `torch.compile(backend="inductor", options=...)` takes them.
    """

    CALLED: ClassVar[str] = "option"

    recipe: str = field(default=DEFAULT_RECIPE, metadata={"expected": f"one of {', '.join(map(repr, RECIPES))}"})
    passes: tuple[PassConfig, ...] = field(default=(), metadata={"expected": f"a list of passes: {PASSES}"})
    exclude: tuple[str, ...] = field(default=(), metadata={"expected": "a list of regular expressions"})
    rules: tuple[Rule, ...] = field(default=(), metadata={"expected": "a list of Rule(...)"})
    inference: Literal["quantized", "high-precision"] = "quantized"
    codegen: Literal["inductor", "eager"] = "inductor"
    carrier: Literal["auto", "native", "fp8", "bf16", "fp32"] = "auto"
    dump: str = field(default="", metadata={"expected": "the path of a folder to write to"})
    numerics: Numerics | None = field(default=None, metadata={"expected": "Numerics(...), or its `every`"})
    disable: tuple[str, ...] = field(default=(), metadata={"expected": "a list of names of passes"})
    inductor: tuple[tuple[str, Any], ...] = field(default=(), metadata={"expected": "a dict of Inductor's options"})

    def resolved(self) -> tuple[PassConfig, ...]:
        """Our passes to run: the recipe's, each replaced by one of the same class in `passes`, then the rest; none that
        is disabled.
        """
        chosen: dict[type, PassConfig] = {type(p): p for p in RECIPES[self.recipe] if not isinstance(p, Rule)}
        chosen.update({type(p): p for p in self.passes})
        return tuple(p for p in chosen.values() if self.runs(PASS_NAMES[type(p)]))

    def runs(self, name: str) -> bool:
        """Whether a pass, ours or a registered one, is left to run."""
        return name not in self.disable

    def all_rules(self) -> tuple[Rule, ...]:
        """Rules in the order in which they are tried: the user's own, then the recipe's."""
        return (*self.own_rules(), *(rule for rule in RECIPES[self.recipe] if isinstance(rule, Rule)))

    def own_rules(self) -> tuple[Rule, ...]:
        """The user's rules; a pattern in `exclude` is one as well."""
        return (*(Rule(layers=pattern, high_precision=True) for pattern in self.exclude), *self.rules)

    def find(self, kind: type[_Pass]) -> _Pass | None:
        """The settings of one pass, or None where it does not run."""
        return policy.find(self.resolved(), kind)


def parse_options(options: Mapping[str, Any] | None, together: bool = True) -> Options:
    """Validate what the user wrote. Raises a ValueError that names the key, the value and the nearest valid one.

    together: whether the settings must also go together; not where they are a part of what will be said.
    """
    given = dict(options or {})
    for key in ("passes", "exclude", "rules", "disable"):
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
    for key, kind in (("exclude", str), ("rules", Rule), ("passes", get_args(PassConfig)), ("disable", str)):
        if isinstance(given.get(key), kind):
            given[key] = (given[key],)
    if isinstance(given.get("inductor"), Mapping):
        given["inductor"] = tuple(sorted(given["inductor"].items(), key=str))
    try:
        if isinstance(given.get("numerics"), int) and not isinstance(given["numerics"], bool):
            given["numerics"] = Numerics(every=given["numerics"])
        for key in given:
            check_name("option", key, [f.name for f in dataclasses.fields(Options)])
        disabled = disabled_by_environment()
        if disabled != (ALL,) and isinstance(given.get("disable", ()), tuple):
            for name in disabled:
                check_name("pass in SPECTRAL_DISABLE", name, pass_names())
            given["disable"] = (*given.get("disable", ()), *disabled)
        if isinstance(given.get("dump"), os.PathLike):
            given["dump"] = os.fspath(given["dump"])
        given.setdefault("dump", os.environ.get("SPECTRAL_DUMP", ""))
        parsed = Options(**given)
        for name in parsed.disable:
            check_name("pass", name, pass_names())
        check_name("recipe", parsed.recipe, RECIPES)
        _check_passes(parsed)
        _check_patterns(parsed)
        if together:
            policy.validate(parsed.resolved(), parsed.all_rules())
    except ValueError as error:
        raise SpectralValueError(str(error)) from None
    return parsed


def _check_passes(options: Options) -> None:
    kinds = [type(p).__name__ for p in options.passes]
    for kind in {k for k in kinds if kinds.count(k) > 1}:
        raise ValueError(f"option 'passes' holds {kind} more than once; which one is meant?")


def _check_patterns(options: Options) -> None:
    for pattern in options.exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"option 'exclude': {pattern!r} is not a regular expression: {error}") from None


def disabled_by_environment() -> tuple[str, ...]:
    """For debugging, SPECTRAL_DISABLE=mean_center,hadamard switches passes off by name, and SPECTRAL_DISABLE=1 all."""
    said = os.environ.get("SPECTRAL_DISABLE", "")
    if said in ("", "0"):
        return ()
    return (ALL,) if said in ("1", "yes", "true", "all") else tuple(name.strip() for name in said.split(","))
