"""What was said of each operand of each GEMM: rule, pass and default merged, with nothing left open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from spectral_compile import formats
from spectral_compile.formats.quantized import check
from spectral_compile.recipes import (
    KINDS,
    GemmRole,
    Hadamard,
    Kind,
    MeanCenter,
    Operand,
    PassConfig,
    QuantizeFP4,
    Rounding,
    Rule,
)

_Pass = TypeVar("_Pass", MeanCenter, Hadamard, QuantizeFP4)


@dataclass(frozen=True)
class OperandPolicy:
    """How the operands of some kind are rounded in some GEMM: see `recipes.Operand`. tile_rows: a block's height."""

    format: str
    rounding: Rounding
    scale: str
    tile_rows: int
    center: bool


def find(passes: Sequence[PassConfig], kind: type[_Pass]) -> _Pass | None:
    """The settings of one pass, or None where it does not run."""
    return next((p for p in passes if isinstance(p, kind)), None)


def operand_policy(passes: Sequence[PassConfig], rule: Rule | None, kind: Kind) -> OperandPolicy:
    """Of one operand; `rule` is the one that its GEMM matched. Raises ValueError where settings do not go together."""
    quantize = find(passes, QuantizeFP4) or QuantizeFP4()
    said: list[Operand] = []  # in order of precedence
    for source in (rule, quantize):
        if source is not None:
            said += [getattr(source, f"{kind}s" if kind != "activation" else "activations"), Operand(source.format)]

    center = _center(passes, kind) and _first(said, "center", True)
    format = _first(said, "format", None)
    if format == "identity":
        return OperandPolicy(format, "nearest", scale="", tile_rows=1, center=center)
    rounding = _first(said, "rounding", "stochastic" if kind == "gradient" else "nearest")
    scale = _first(said, "scale", _suitable_scale(format, rounding))
    square = _first(said, "square", kind == "weight" and format == "nvfp4")
    tile_rows = formats.FORMATS[format].block if square else 1
    check(format, scale, tile_rows, stochastic=rounding == "stochastic")
    return OperandPolicy(format, rounding, scale, tile_rows, center)


def transforms(passes: Sequence[PassConfig], rule: Rule | None, role: GemmRole) -> bool:
    """Whether the operands of a GEMM are Hadamard-transformed."""
    if rule is not None and rule.hadamard is not None:
        return rule.hadamard
    hadamard = find(passes, Hadamard)
    return hadamard is not None and role in hadamard.gemms


def validate(passes: Sequence[PassConfig], rules: Sequence[Rule]) -> None:
    """Raise a ValueError for settings that do not go together under any rule."""
    for rule in (None, *rules):
        try:
            for kind in KINDS:
                operand_policy(passes, rule, kind)
            _check_mean_mode(passes, rule)
        except ValueError as error:
            where = "" if rule is None else f" by the rule for {rule}"
            raise ValueError(f"what is asked{where} cannot be done: {error}") from None


def rounds_stochastically(passes: Sequence[PassConfig], rules: Sequence[Rule]) -> bool:
    """Whether any operand may be, so that graphs need a seed."""
    if find(passes, QuantizeFP4) is None:
        return False
    rounded = [operand_policy(passes, rule, kind) for rule in (None, *rules) for kind in KINDS]
    return any(policy.rounding == "stochastic" for policy in rounded)


def _check_mean_mode(passes: Sequence[PassConfig], rule: Rule | None) -> None:
    center = find(passes, MeanCenter)
    if center is not None and center.mode == "paper" and transforms(passes, rule, "wgrad"):
        raise ValueError(
            "MeanCenter(mode='paper') sums the rounded residuals over tokens, which a Hadamard transform mixes:"
            " use mode 'hp' or 'requant', or leave Hadamard out"
        )


def _center(passes: Sequence[PassConfig], kind: Kind) -> bool:
    center = find(passes, MeanCenter)
    return center is not None and {"activation": center.activations, "gradient": center.gradients}.get(kind, False)


def _suitable_scale(format: str, rounding: str) -> str:
    """The rule with the least error; under stochastic rounding the one that never clips, as clipping is a bias."""
    if format == "mxfp4":
        return "rceil" if rounding == "stochastic" else "even"
    return "amax"


def _first(said: Sequence[Operand], name: str, default: Any) -> Any:
    return next((value for operand in said if (value := getattr(operand, name)) is not None), default)
