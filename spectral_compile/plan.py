"""The plan: what was decided for each GEMM, and why. Pure data, computed without touching the graph."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from spectral_compile.formats import FORMATS
from spectral_compile.graph.provenance import Role


@dataclass(frozen=True)
class OperandPlan:
    """How one operand is quantised: kind "activation", "weight" or "gradient"; format, and the rule by which its scales
    are chosen; a block's height in rows; whether rounding is stochastic; whether its token mean is removed first.
    `stream` keeps its random bits apart from all others'.
    """

    kind: str
    format: str
    scale: str = ""
    tile_rows: int = 1
    stochastic: bool = False
    centered: bool = False
    stream: int = 0


@dataclass(frozen=True)
class GemmPlan:
    """One row. `node` names the product in the traced graph; [m, n] = [m, k] @ [k, n], as numbers or symbols, empty
    for products that are not of two matrices.

    `reason` says why a GEMM stays in high precision and is empty where it is quantised; then a and b, carrier and,
    where something is centred, mean_mode and min_rows are set. hadamard: both operands are transformed along k.
    experts: how many matrices a stack of weights holds, empty for a product of two matrices; m, or in wgrad k, then
    counts the tokens of all of them.
    """

    node: str
    layer: str
    role: Role
    m: str
    n: str
    k: str
    dtype: str
    reason: str = ""
    a: OperandPlan | None = None
    b: OperandPlan | None = None
    hadamard: bool = False
    carrier: str = ""
    mean_mode: str = ""
    min_rows: int = 0
    experts: str = ""

    @property
    def quantized(self) -> bool:
        """Whether the product runs on FP4 operands."""
        return not self.reason

    @property
    def centered(self) -> bool:
        """Whether a mean is taken out of an operand of this product."""
        return any(operand is not None and operand.centered for operand in (self.a, self.b))

    def cells(self) -> tuple[str, str, str, str]:
        """Layer, role, extents, and what was decided, for a table."""
        extents = self.m and f"{self.m} x {self.n} x {self.k}"
        shared = f", {self.experts} experts" if self.experts not in ("", "1") else ""
        return self.layer, self.role, extents + shared, self.reason or _decision(self)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class WeightPlan:
    """One trainable parameter, where `WeightSmoothing` is asked for. role: "hidden" (a linear's weight), "experts" (a
    stack of them), "head", "router", "embedding", "norm", "vector" or "other", as the graph uses it.

    `reason` says why a weight is not smoothed and is empty where it is; then sizes are those of the matrices that lie
    side by side along axis `dim` (-2 or -1) of a fused one, empty for one.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    reason: str = ""
    sizes: tuple[int, ...] = ()
    dim: int = -2

    @property
    def refused(self) -> bool:
        """Whether another graph of the model, too, must leave it alone."""
        return self.role in ("embedding", "head", "router", "norm")

    def cells(self) -> tuple[str, str, str, str]:
        """Name, shape, role, and what was decided, for a table."""
        parts = f", in parts {' + '.join(map(str, self.sizes))}" if self.sizes else ""
        return self.name, " x ".join(map(str, self.shape)), self.role, self.reason or f"smoothed{parts}"


@dataclass(frozen=True)
class RouterPlan:
    """One router, where `HeadwiseRouter` is asked for. family: how its gates come about; dispatch: the experts'
    products; top_k: experts that a head's slice goes to.

    `reason` says why a router is left alone and is empty where it is split; breaks: its experts break the graph.
    """

    layer: str
    family: str
    dispatch: str
    experts: int
    top_k: int
    heads: int
    mode: str
    reason: str = ""
    breaks: bool = False

    def left(self, reason: str) -> "RouterPlan":
        """The router left alone."""
        return dataclasses.replace(self, reason=reason)

    def cells(self) -> tuple[str, str, str, str]:
        """Layer, router, experts, and what was decided, for a table."""
        changed = "another function of the same weights" if self.mode in ("subtoken", "bank") else ""
        split = f"{self.mode}, {self.heads} heads, {self.top_k} experts each"
        decision = f"{split}: {changed}" if changed and self.heads > 1 else split
        experts = f"{self.experts}, by {self.dispatch}" if self.dispatch else str(self.experts)
        return self.layer, self.family, experts, self.reason or decision


@dataclass(frozen=True)
class Plan:
    """All rows, in graph order. products: once the graph is rewritten, the node that each row's product has become.
    weights: where weights are smoothed, which. routers: where routers are split, which.
    """

    rows: tuple[GemmPlan, ...]
    products: tuple[str, ...] = ()
    weights: tuple[WeightPlan, ...] = ()
    routers: tuple[RouterPlan, ...] = ()

    @property
    def quantized(self) -> tuple[GemmPlan, ...]:
        """The rows that are quantised."""
        return tuple(row for row in self.rows if row.quantized)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        return dataclasses.asdict(self)

    def __rich__(self) -> Group:
        table = Table(title=f"{len(self.quantized)} of {len(self.rows)} GEMMs in four bits")
        for heading in ("layer", "role", "m x n x k", "decision"):
            table.add_column(heading)
        for row in self.rows:
            table.add_row(*map(escape, row.cells()))  # a reason may quote a regular expression: [a-z] is no markup
        tables = [table]
        tables += [weights_table(self.weights)] if self.weights else []
        tables += [routers_table(self.routers)] if self.routers else []
        return Group(*tables)


def weights_table(weights: Sequence[WeightPlan]) -> Table:
    """Which weights are smoothed, and why not where not."""
    count = sum(not weight.reason for weight in weights)
    table = Table(title=f"{count} of {len(weights)} parameters smoothed as their optimizer steps")
    for heading in ("parameter", "shape", "role", "decision"):
        table.add_column(heading)
    for weight in weights:
        table.add_row(*map(escape, weight.cells()))
    return table


def routers_table(routers: Sequence[RouterPlan]) -> Table:
    """Which routers are split, and why not where not."""
    count = sum(not router.reason for router in routers)
    table = Table(title=f"{count} of {len(routers)} routers split head by head")
    for heading in ("layer", "gates", "experts", "decision"):
        table.add_column(heading)
    for router in routers:
        table.add_row(*map(escape, router.cells()))
    return table


def _decision(row: GemmPlan) -> str:
    operands = " @ ".join(_operand(operand) for operand in (row.a, row.b) if operand is not None)
    return f"{operands}{', Hadamard' if row.hadamard else ''}, carried in {row.carrier}"


def _operand(operand: OperandPlan) -> str:
    if operand.format == "identity":
        marks = ["identity"]
    else:
        block = FORMATS[operand.format].block
        marks = [f"{operand.format} {operand.tile_rows}x{block}"]
        marks += [operand.scale] if operand.scale != FORMATS[operand.format].scales[0] else []
    marks += ["stochastic"] if operand.stochastic else []
    marks += ["centred"] if operand.centered else []
    return f"{operand.kind} ({', '.join(marks)})"
