"""Decides, GEMM by GEMM, with a reason for each one left alone."""

import dataclasses
import zlib
from collections import Counter

import torch
from torch import fx

from spectral_compile._torch import statically_known_true
from spectral_compile.config import Options
from spectral_compile.graph.experts import operands
from spectral_compile.graph.provenance import Gemm, Provenance
from spectral_compile.graph.roles import heads_and_routers
from spectral_compile.lowering.carrier import capability_of, choose_carrier
from spectral_compile.plan import GemmPlan, OperandPlan, Plan
from spectral_compile.policy import operand_policy, transforms
from spectral_compile.recipes import GemmRole, Kind, MeanCenter, QuantizeFP4, Rule
from spectral_compile.rules import find_rule
from spectral_compile.scopes import Scopes

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def make_plan(graph: fx.Graph, provenance: Provenance, scopes: Scopes) -> Plan:
    """The plan for one AOTAutograd graph. Nothing in the graph is changed."""
    special = heads_and_routers(graph, provenance)
    training = any(gemm.role in ("dgrad", "wgrad") for gemm in provenance.gemms)
    layers = sorted({gemm.layer for gemm in provenance.gemms})
    streams = _streams(provenance.gemms)
    rows = []
    for gemm in provenance.gemms:
        forward = (gemm.forward or gemm).node
        options = scopes.of(forward)
        rule = None if gemm.role == "other" else find_rule(options.all_rules(), gemm.layer, _role(gemm), layers)
        reason = _reason_against(gemm, special, rule, training, options)
        if not reason and scopes.excluded(forward):
            reason = "excluded: spectral_compile.exclude was said of its module or function"
        rows.append(_row(gemm, reason, rule, streams, training, options))
    return Plan(tuple(rows))


def _reason_against(gemm: Gemm, special: dict[Gemm, str], rule: Rule | None, training: bool, options: Options) -> str:
    forward = gemm.forward or gemm
    if gemm.role == "other":
        return gemm.note
    if options.find(QuantizeFP4) is None:
        return "no pass of this recipe quantises"
    if forward in special:
        return special[forward]
    if not training and options.inference == "high-precision":
        return "inference, by option in high precision"
    # A backward product follows its forward.
    unsupported = _unsupported(forward) or _unsupported(gemm) or _unsupported_experts(gemm, rule, options)
    if unsupported:
        return unsupported
    return f"high precision by the rule for {rule}" if rule is not None and rule.high_precision else ""


def _unsupported(gemm: Gemm) -> str:
    dtype = gemm.node.meta["val"].dtype
    if dtype not in _DTYPES:
        return f"{_name(dtype)} products stay as they are"
    if gemm.node.kwargs:
        return "addmm with alpha or beta stays as it is"
    if gemm.addend is None:
        return ""
    if not gemm.weight_is_b:
        return "addmm with the weight on the left stays as it is"
    shape, features = gemm.addend.meta["val"].shape, gemm.node.meta["val"].shape[1]
    is_bias = len(shape) == 1 and statically_known_true(shape[0] == features)
    return "" if is_bias else "addmm that adds anything but a bias [out_features] stays as it is"


def _unsupported_experts(gemm: Gemm, rule: Rule | None, options: Options) -> str:
    center = options.find(MeanCenter)
    if gemm.grouped is None or center is None or center.mode == "hp":
        return ""
    kinds = (kind for kind in _kinds(gemm) if operand_policy(options.resolved(), rule, kind).center)
    return "experts whose mean is taken out in another mode than 'hp' stay as they are" if any(kinds) else ""


def _streams(gemms: list[Gemm]) -> dict[tuple[Gemm, Kind], int]:
    """The random stream of each operand, by product and kind: a hash of layer, role, kind and how many calls of the
    layer came before. So neither checkpointing nor leaving out another layer changes how an operand is rounded.
    """
    calls: Counter[str] = Counter()
    occurrence: dict[Gemm, int] = {}
    streams: dict[tuple[Gemm, Kind], int] = {}
    taken: set[int] = set()
    for gemm in gemms:
        if gemm.role == "other":
            continue
        if gemm.forward is None:
            occurrence[gemm] = calls[gemm.layer]
            calls[gemm.layer] += 1
        for kind in _kinds(gemm):
            identity = f"{gemm.layer}/{gemm.role}/{kind}/{occurrence[gemm.forward or gemm]}"
            stream = zlib.crc32(identity.encode())
            while stream in taken:  # a collision: the later one moves on
                stream = (stream + 1) % 2**32
            taken.add(stream)
            streams[gemm, kind] = stream
    return streams


def _row(
    gemm: Gemm,
    reason: str,
    rule: Rule | None,
    streams: dict[tuple[Gemm, Kind], int],
    training: bool,
    options: Options,
) -> GemmPlan:
    value = gemm.node.meta["val"]
    m, n, k = ("", "", "") if gemm.a is None else (str(size) for size in _shape(gemm))
    count = "" if gemm.grouped is None else str(_experts(gemm))
    row = GemmPlan(gemm.node.name, gemm.layer, gemm.role, m, n, k, _name(_dtype(value)), reason, experts=count)
    if reason:
        return row
    center = options.find(MeanCenter) or MeanCenter()
    few = _tokens_are_few(gemm, center.min_rows)
    operands = [_operand(kind, rule, few, streams[gemm, kind], options) for kind in _kinds(gemm)]
    if not training:  # an evaluation gives the same result each time, and draws no seed
        operands = [dataclasses.replace(operand, stochastic=False) for operand in operands]
    a, b = operands
    row = dataclasses.replace(
        row,
        a=a,
        b=b,
        hadamard=transforms(options.resolved(), rule, _role(gemm)),
        carrier=_carrier(gemm, (a.format, b.format), options),
    )
    return dataclasses.replace(row, mean_mode=center.mode, min_rows=center.min_rows) if row.centered else row


def _carrier(gemm: Gemm, formats: tuple[str, str], options: Options) -> str:
    value = gemm.node.meta["val"]
    carrier = choose_carrier(value.device, value.dtype, formats, options.carrier, capability_of(value.device))
    # There is no kernel for grouped products on FP4 or FP8 units.
    return "bf16" if gemm.grouped is not None and carrier in ("native", "fp8") else carrier


def _role(gemm: Gemm) -> GemmRole:
    assert gemm.role != "other"
    return gemm.role


def _kinds(gemm: Gemm) -> tuple[Kind, Kind]:
    if gemm.role == "wgrad":
        return ("gradient", "activation") if gemm.gradient_is_a else ("activation", "gradient")
    moving: Kind = "activation" if gemm.role == "fprop" else "gradient"
    return (moving, "weight") if gemm.weight_is_b else ("weight", moving)


def _operand(kind: Kind, rule: Rule | None, few_tokens: bool, stream: int, options: Options) -> OperandPlan:
    policy = operand_policy(options.resolved(), rule, kind)
    return OperandPlan(
        kind,
        format=policy.format,
        scale=policy.scale,
        tile_rows=policy.tile_rows,
        stochastic=policy.rounding == "stochastic",
        centered=policy.center and not few_tokens,
        stream=stream,
    )


def _tokens_are_few(gemm: Gemm, min_rows: int) -> bool:
    """True only where the number of tokens is known: otherwise the operator that takes the mean decides at run time."""
    m, n, k = _shape(gemm)
    tokens = k if gemm.role == "wgrad" else (m if gemm.weight_is_b else n)
    if gemm.grouped is not None and gemm.grouped.offsets is None:
        tokens = tokens // _experts(gemm)
    return statically_known_true(tokens < min_rows)


def _shape(gemm: Gemm) -> tuple[int, int, int]:
    """(m, n, k) of a product of two matrices; of a grouped one, with all experts' tokens together."""
    assert gemm.a is not None
    assert gemm.b is not None
    if gemm.grouped is not None:
        tokens, of_a = _tokens_and_features(gemm.a, gemm.grouped.a[1])
        _, of_b = _tokens_and_features(gemm.b, gemm.grouped.b[1])
        return (of_a, of_b, tokens) if gemm.grouped.ragged_k else (tokens, of_b, of_a)
    m, k = gemm.a.meta["val"].shape
    return m, gemm.b.meta["val"].shape[1], k


def _tokens_and_features(node: fx.Node, flipped: bool) -> tuple[int, int]:
    """Of an operand of a grouped product: all but the last axis, and the last."""
    *batch, rows, cols = node.meta["val"].shape
    rows, cols = (cols, rows) if flipped else (rows, cols)
    return (batch[0] * rows if batch else rows), cols


def _experts(gemm: Gemm) -> int:
    assert gemm.grouped is not None
    assert gemm.a is not None
    _, _, offsets = operands(gemm.node, gemm.grouped)
    return int((gemm.a if offsets is None else offsets).meta["val"].shape[0])


def _dtype(value: object) -> torch.dtype:
    first = value[0] if isinstance(value, (list, tuple)) else value
    return first.dtype if isinstance(first, torch.Tensor) else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
