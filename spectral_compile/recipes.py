"""The settings of passes, rules for single GEMMs, and the recipes, which are named sets of both."""

import math
import re
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spectral_compile.validation import settings

if TYPE_CHECKING:
    from spectral_compile.optim.smoothing import Smoothing
    from spectral_compile.optim.trigger import Trigger

Kind = Literal["activation", "weight", "gradient"]
GemmRole = Literal["fprop", "dgrad", "wgrad"]
FormatName = Literal["nvfp4", "mxfp4", "identity"]
Rounding = Literal["nearest", "stochastic"]
MeanMode = Literal["hp", "requant", "paper"]

ROLES: tuple[GemmRole, ...] = ("fprop", "dgrad", "wgrad")
KINDS: tuple[Kind, ...] = ("activation", "weight", "gradient")
OPERANDS: Mapping[GemmRole, tuple[Kind, Kind]] = MappingProxyType(
    {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight"), "wgrad": ("gradient", "activation")}
)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Roles = Annotated[tuple[GemmRole, ...], BeforeValidator(_as_tuple)]
_ROLES_EXPECTED = {"expected": f"a list of {', '.join(map(repr, ROLES))}"}


@settings
class MeanCenter:
    """Take the token mean out of activations and of gradients before they are quantised (Averis), and add the product
    of the mean with the other operand back.

    mode: "hp" keeps the mean in fp32 and multiplies it with the other operand in its own precision; "requant" takes
    out the mean rounded to the operand's format, so that its product is one of rounded operands; "paper" takes out the
    mean and adds back products of the rounded mean, as published. min_rows: with fewer tokens nothing is centred, as
    the mean would carry most of the operand past the quantiser.
    """

    activations: bool = True
    gradients: bool = True
    mode: MeanMode = "hp"
    min_rows: Annotated[int, Field(ge=1)] = field(default=32, metadata={"expected": "a number of tokens, 1 or more"})


@settings
class Hadamard:
    """Transform both operands of these GEMMs along the axis that they contract, in groups of 16, with fixed signs: the
    product is the same, but an outlier is spread over 16 values before they are rounded.
    """

    gemms: Roles = field(default=("wgrad",), metadata=_ROLES_EXPECTED)


@settings
class Operand:
    """How one kind of operand is rounded. What is None is left to the next that has a say: a rule, then the pass, then
    what suits the kind and the format.

    format: "identity" leaves the operand in its own precision. rounding: gradients are rounded stochastically unless
    told otherwise. scale: how block scales are chosen, "amax", "headroom" or "four_six" for nvfp4, "floor", "ceil",
    "rceil" or "even" for mxfp4. square: blocks as high as they are wide, so that a weight has the same codes in fprop
    and dgrad; else blocks of one row. center: whether MeanCenter takes the operand's mean out.
    """

    format: FormatName | None = None
    rounding: Rounding | None = None
    scale: Literal["amax", "headroom", "four_six", "floor", "ceil", "rceil", "even"] | None = None
    square: bool | None = None
    center: bool | None = None

    def __post_init__(self) -> None:
        if self.format == "identity" and not (self.rounding is None and self.scale is None and self.square is None):
            raise ValueError("format 'identity' rounds nothing: leave rounding, scale and square out")


_OPERAND_EXPECTED = {"expected": "an Operand(...)"}


@settings
class QuantizeFP4:
    """Quantise both operands of fprop, dgrad and wgrad, with blocks along the axis that each product contracts.

    format: of all operands that name none. "identity" rewrites everything and rounds nothing.
    """

    format: FormatName = "nvfp4"
    activations: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)
    weights: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)
    gradients: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)


@settings
class Rule:
    """What is different for the GEMMs of some layers. Of several rules the first that matches a GEMM counts, alone.

    layers: a regular expression, searched in a layer's path; empty for all. last_blocks: instead, the last so many of
    the graph's blocks, which are what is numbered and has layers inside ("layers.31", not the layers of an
    nn.Sequential), or a share of them between 0 and 1, rounded.
    gemms: the GEMMs of those layers that are meant. high_precision: leave them as they are. The rest is as for
    QuantizeFP4 and Hadamard, of which it takes the place.
    """

    layers: str = ""
    last_blocks: int | float | None = field(default=None, metadata={"expected": "a number of blocks, or a share"})
    gemms: Roles = field(default=ROLES, metadata=_ROLES_EXPECTED)
    high_precision: bool = False
    format: FormatName | None = None
    activations: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)
    weights: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)
    gradients: Operand = field(default=Operand(), metadata=_OPERAND_EXPECTED)
    hadamard: bool | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"{self.layers!r} is not a regular expression: {error}") from None
        self._check_gemms()
        blocks = self.last_blocks
        if blocks is None:
            return
        if self.layers:
            raise ValueError("layers and last_blocks both say which layers are meant: give one of them")
        if not (0 < blocks < 1 if isinstance(blocks, float) else blocks >= 1):
            raise ValueError(f"last_blocks is a number of 1 or more, or a share between 0 and 1, not {blocks!r}")

    def _check_gemms(self) -> None:
        if not self.gemms:
            raise ValueError("gemms is empty, so the rule is about nothing")
        given = {"activation": self.activations, "weight": self.weights, "gradient": self.gradients}
        told = [kind for kind, operand in given.items() if operand != Operand()]
        if self.high_precision and (told or self.format is not None or self.hadamard is not None):
            raise ValueError("high_precision leaves the GEMMs as they are: leave all other settings out")
        read = {kind for role in self.gemms for kind in OPERANDS[role]}
        for kind in told:
            if kind not in read:
                raise ValueError(f"{', '.join(self.gemms)} reads no {kind}: leave {kind}s out")

    @property
    def everywhere(self) -> bool:
        """Whether all layers are meant."""
        return not self.layers and self.last_blocks is None

    def __str__(self) -> str:
        """Which GEMMs are meant, for messages."""
        what = "" if self.gemms == ROLES else f"{', '.join(self.gemms)} of "
        if self.last_blocks is None:
            return what + (f"layers {self.layers!r}" if self.layers else "all layers")
        return what + ("the last block" if self.last_blocks == 1 else f"the last {self.last_blocks} blocks")


@settings
class Numerics:
    """Measure what quantisation does to each operand, in every `every`-th training call of a compiled graph.

    cosine: compare each quantised product with the same one in high precision as well. Costs a product of fp32 in
    calls that are measured, and in all of them memory: operands are saved for backward as they were.
    file: where lines of JSON are added; without one they go into the graph's folder where there is a `dump`.
    tensorboard: a folder for TensorBoard's scalars. Whatever is said here: `spectral_compile.numerics()`.
    """

    every: int = field(default=50, metadata={"expected": "a number of calls, 1 or more"})
    cosine: bool = False
    file: str = ""
    tensorboard: str = ""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is a number of calls, 1 or more, not {self.every}")


def _as_pairs(value: Any) -> Any:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in pairs)


@settings
class WeightSmoothing:
    """Bring the top singular values of linears' weights down when the gradient's norm says that the loss is about to
    explode, just after the optimizer's step (parametric singularity smoothing, PSS). The program stays as it is.

    function, share, cap, iterations: how, see `optim.Smoothing`. threshold, alpha, warmup, cooldown: when, see
    `optim.Trigger`. every: instead, at each so many steps. split: of fused weights that the graph does not show to be,
    by regular expressions on the parameter's name, the number of equal parts or their sizes:
    {"qkv_proj": 3, "kv_b": (512, 512)}.
    """

    function: Literal["clip", "log", "softplus", "softmax", "conv3"] = "clip"
    share: float = 0.05
    cap: float = 0.1
    iterations: int = 3
    threshold: float = 2.5
    alpha: float = 0.1
    warmup: int = 50
    cooldown: int = 30
    every: int | None = field(default=None, metadata={"expected": "a number of steps, 1 or more"})
    split: Annotated[tuple[tuple[str, int | tuple[int, ...]], ...], BeforeValidator(_as_pairs)] = field(
        default=(), metadata={"expected": "parts, or their sizes, by regular expression"}
    )

    def __post_init__(self) -> None:
        try:
            _ = self.smoothing, self.trigger
        except ValueError as error:
            raise ValueError(str(error).partition(": ")[2]) from None
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is a number of steps, 1 or more, not {self.every}")
        for expression, parts in self.split:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"split: {expression!r} is not a regular expression: {error}") from None
            if min((parts,) if isinstance(parts, int) else parts, default=0) < 1:
                raise ValueError(f"split: {expression!r} is in parts of 1 or more, not {parts!r}")

    @property
    def smoothing(self) -> "Smoothing":
        """How a weight is smoothed."""
        from spectral_compile.optim.smoothing import Smoothing  # whoever smooths nothing needs none of it

        return Smoothing(self.function, self.share, self.cap, self.iterations)

    @property
    def trigger(self) -> "Trigger":
        """When weights are smoothed."""
        from spectral_compile.optim.trigger import Trigger

        return Trigger(self.threshold, self.alpha, self.warmup, self.cooldown)


@settings
class HeadwiseRouter:
    """Split routers of mixtures of experts head by head: each slice of the features is routed on its own, through the
    parameters that are there. The program, parameters and their shapes stay as they are.

    heads: how many slices, or "attention": as many as the attention has that the layer follows. mode: "subtoken",
    "bank", "mask" or "vote", see `passes/headwise_router/modes.py`. experts_per_head: how many experts a slice goes to;
    None: as many as a token went to. logit_scale: what makes up for a head's logits being a sum of fewer terms: "none",
    "sqrt" (of heads) or "mean" (heads; then heads that agree give the original logits). aux: whether balance losses are
    the mean of the heads' ("per_head") or those of the whole router ("original"). acknowledge: no warning that
    "subtoken" and "bank" make another function of weights that were trained without them.
    """

    heads: int | Literal["attention"] = field(
        default="attention", metadata={"expected": "a number of heads, 1 or more, or 'attention'"}
    )
    mode: Literal["subtoken", "bank", "mask", "vote"] = "subtoken"
    experts_per_head: int | None = field(default=None, metadata={"expected": "a number of experts, 1 or more, or None"})
    logit_scale: Literal["none", "sqrt", "mean"] = "sqrt"
    aux: Literal["per_head", "original"] = "per_head"
    acknowledge: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "experts_per_head"):
            number = getattr(self, name)
            if isinstance(number, int) and number < 1:
                raise ValueError(f"{name} is 1 or more, not {number}")

    def factor(self, heads: int) -> float:
        """What a head's logits are multiplied by."""
        return {"none": 1.0, "sqrt": math.sqrt(heads), "mean": float(heads)}[self.logit_scale]


PassConfig = MeanCenter | Hadamard | QuantizeFP4 | WeightSmoothing | HeadwiseRouter

RECIPES: Mapping[str, tuple[PassConfig | Rule, ...]] = MappingProxyType(
    {
        "auto": (QuantizeFP4(), Rule(last_blocks=0.15, high_precision=True)),  # docs/recipes.md: what was measured
        "none": (),  # Inductor as it is
        "identity": (MeanCenter(), Hadamard(), QuantizeFP4(format="identity")),  # the whole rewrite, no rounding
        "nvfp4-plain": (QuantizeFP4(),),
        "nvfp4": (Hadamard(), QuantizeFP4()),  # NVIDIA's operands and transform (Pretraining LLMs with NVFP4, 2025)
        "four-six": (QuantizeFP4(activations=Operand(scale="four_six")),),  # the rule with the least error
        "averis": (MeanCenter(), QuantizeFP4()),  # as published, but for the mean in high precision
        "averis+hadamard": (MeanCenter(), Hadamard(), QuantizeFP4()),
        "mxfp4": (QuantizeFP4(format="mxfp4"),),
        "averis-mxfp4": (MeanCenter(), QuantizeFP4(format="mxfp4")),
    }
)
