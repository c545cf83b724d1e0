"""What was said of each operand of each GEMM: rule, pass and default merged, with nothing left open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from spectral_compile import formats
from spectral_compile.formats.quantized import check
from spectral_compile.recipes import (
    KINDS,
    OPERANDS,
    ROLES,
    GemmRole,
    Hadamard,
    HeadwiseRouter,
    Kind,
    MeanCenter,
    Operand,
    PassConfig,
    QuantizeFP4,
    Rounding,
    Rule,
    WeightSmoothing,
)

_Pass = TypeVar("_Pass", MeanCenter, Hadamard, QuantizeFP4, WeightSmoothing, HeadwiseRouter)


@dataclass(frozen=True)
class OperandPolicy:
    """How the operands of some kind are rounded in some GEMM: see `recipes.Operand`. tile_rows: a block's height."""

    format: str
    rounding: Rounding
    scale: str
    tile_rows: int
    center: bool


def find(passes: Sequence[PassConfig | Rule], kind: type[_Pass]) -> _Pass | None:
    """The settings of one pass, or None where it does not run."""
    return next((p for p in passes if isinstance(p, kind)), None)


def operand_policy(passes: Sequence[PassConfig | Rule], rule: Rule | None, kind: Kind) -> OperandPolicy:
    """Of one operand; `rule` is the one that its GEMM matched. Raises ValueError where settings do not go together."""
    quantize = find(passes, QuantizeFP4) or QuantizeFP4()
    by_rule, by_pass = _said(rule, kind), _said(quantize, kind)
    said = by_rule + by_pass

    center = _center(passes, kind, _first(said, "center", None))
    format = _first(said, "format", None)
    if format == "identity":
        return OperandPolicy(format, "nearest", scale="", tile_rows=1, center=center)
    rounding = _first(said, "rounding", "stochastic" if kind == "gradient" else "nearest")
    # A pass chose its scale and its blocks for its own format, not for the one that a rule puts in its place.
    of_format = said if format == _first(by_pass, "format", None) else by_rule
    scale = _first(of_format, "scale", _suitable_scale(format, rounding))
    square = _first(of_format, "square", kind == "weight" and format == "nvfp4")
    tile_rows = formats.FORMATS[format].block if square else 1
    try:
        check(format, scale, tile_rows, stochastic=rounding == "stochastic")
    except ValueError as error:
        raise ValueError(f"{kind}s: {error}") from None
    return OperandPolicy(format, rounding, scale, tile_rows, center)


def transforms(passes: Sequence[PassConfig | Rule], rule: Rule | None, role: GemmRole) -> bool:
    """Whether the operands of a GEMM are Hadamard-transformed."""
    if rule is not None and rule.hadamard is not None:
        return rule.hadamard
    hadamard = find(passes, Hadamard)
    return hadamard is not None and role in hadamard.gemms


def validate(passes: Sequence[PassConfig], rules: Sequence[Rule]) -> None:
    """Raise a ValueError for settings that do not go together, in any GEMM that they are about."""
    everywhere = {role for rule in rules if rule.everywhere for role in rule.gemms}
    for rule in (None, *rules):
        if rule is not None and rule.high_precision:
            continue
        roles = [role for role in ROLES if role not in everywhere] if rule is None else rule.gemms
        try:
            for role in roles:
                for kind in OPERANDS[role]:
                    operand_policy(passes, rule, kind)
            if "wgrad" in roles:
                _check_mean_mode(passes, rule)
        except ValueError as error:
            where = "" if rule is None else f" by the rule for {rule}"
            raise ValueError(f"what is asked{where} cannot be done: {error}") from None


def product_formats(passes: Sequence[PassConfig], rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """The formats of both operands of any product that may be quantised."""
    if find(passes, QuantizeFP4) is None:
        return []
    everywhere = {role for rule in rules if rule.everywhere for role in rule.gemms}
    cases: list[tuple[Rule | None, GemmRole]] = [(None, role) for role in ROLES if role not in everywhere]
    cases += [(rule, role) for rule in rules if not rule.high_precision for role in rule.gemms]
    found = {tuple(operand_policy(passes, rule, kind).format for kind in OPERANDS[role]) for rule, role in cases}
    return sorted((a, b) for a, b in found)


def rounds_stochastically(passes: Sequence[PassConfig], rules: Sequence[Rule]) -> bool:
    """Whether any operand may be, so that graphs need a seed."""
    if find(passes, QuantizeFP4) is None:
        return False
    pairs: list[tuple[Rule | None, Kind]] = [(None, kind) for kind in KINDS]
    pairs += [
        (rule, kind) for rule in rules if not rule.high_precision for role in rule.gemms for kind in OPERANDS[role]
    ]
    return any(operand_policy(passes, rule, kind).rounding == "stochastic" for rule, kind in pairs)


def _check_mean_mode(passes: Sequence[PassConfig], rule: Rule | None) -> None:
    center = find(passes, MeanCenter)
    if center is None or center.mode != "paper" or not transforms(passes, rule, "wgrad"):
        return
    if any(operand_policy(passes, rule, kind).center for kind in OPERANDS["wgrad"]):
        raise ValueError(
            "MeanCenter(mode='paper') sums the rounded residuals over tokens, which a Hadamard transform mixes:"
            " use mode 'hp' or 'requant', or leave Hadamard out"
        )


def _said(source: Rule | QuantizeFP4 | None, kind: Kind) -> list[Operand]:
    """What a rule or the pass says of one kind of operand, its own settings before those of all operands."""
    if source is None:
        return []
    own = {"activation": source.activations, "weight": source.weights, "gradient": source.gradients}
    return [own[kind], Operand(source.format)]


def _center(passes: Sequence[PassConfig | Rule], kind: Kind, said: bool | None) -> bool:
    center = find(passes, MeanCenter)
    if said and kind == "weight":
        raise ValueError("a weight has no token mean to take out: leave center out")
    if said and center is None:
        raise ValueError(f"{kind}s: center=True needs MeanCenter(...) among the passes")
    if center is None or said is False:
        return False
    return said or {"activation": center.activations, "gradient": center.gradients}.get(kind, False)


def _suitable_scale(format: str, rounding: str) -> str:
    """The rule with the least error; under stochastic rounding the one that never clips, as clipping is a bias."""
    if format == "mxfp4":
        return "rceil" if rounding == "stochastic" else "even"
    return "amax"


def _first(said: Sequence[Operand], name: str, default: Any) -> Any:
    return next((value for operand in said if (value := getattr(operand, name)) is not None), default)
