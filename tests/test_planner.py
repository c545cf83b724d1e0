"""Decisions, the reasons for leaving a product alone, and random streams that stay where they are."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectral_compile import MeanCenter, Operand, QuantizeFP4, Rule
from spectral_compile.plan import GemmPlan, OperandPlan
from tests.capture import Capture, capture, gradients


def inputs(tokens: int = 64, features: int = 32) -> Tensor:
    return torch.randn(tokens, features, requires_grad=True)


class Model(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks, the last of which is called twice; some of them checkpointed."""

    def __init__(self, checkpointed: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate([*self.blocks, self.blocks[-1]]):
            x = checkpoint(block, x, use_reentrant=False) if i in self.checkpointed else block(x)
        return x


def all_reasons(captured: Capture) -> set[str]:
    return {row.reason for row in captured.plan.rows}


def test_what_is_quantised_has_its_operands_format_and_carrier() -> None:
    captured = capture(nn.Linear(32, 48), inputs())
    activation, weight, gradient = (OperandPlan(kind, "nvfp4", "amax") for kind in ("activation", "weight", "gradient"))
    expected = {
        "fprop": (dataclasses.replace(activation, centered=True), dataclasses.replace(weight, tile_rows=16)),
        "dgrad": (
            dataclasses.replace(gradient, stochastic=True, centered=True),
            dataclasses.replace(weight, tile_rows=16),
        ),
        "wgrad": (
            dataclasses.replace(gradient, stochastic=True, centered=True),
            dataclasses.replace(activation, centered=True),
        ),
    }
    for row in captured.plan.rows:
        assert row.a is not None
        assert row.b is not None
        assert tuple(dataclasses.replace(operand, stream=0) for operand in (row.a, row.b)) == expected[row.role]
        assert (row.carrier, row.mean_mode, row.min_rows, row.dtype) == ("fp32", "hp", 32, "float32")
    assert all_reasons(captured) == {""}


@pytest.mark.parametrize(
    ("function", "parameters", "reason"),
    [
        (
            lambda s, x: torch.addmm(s.b, x, s.w, alpha=2.0),
            {"w": (32, 16), "b": (16,)},
            "addmm with alpha or beta stays as it is",
        ),
        (
            lambda s, x: torch.addmm(s.b, x, s.w),
            {"w": (32, 16), "b": (64, 16)},
            "addmm that adds anything but a bias [out_features] stays as it is",
        ),
        (
            lambda s, x: torch.addmm(s.b, x, s.w),
            {"w": (32, 16), "b": (1,)},
            "addmm that adds anything but a bias [out_features] stays as it is",
        ),
        (
            lambda s, x: torch.addmm(s.b, s.w, x.T),
            {"w": (16, 32), "b": (64,)},
            "addmm with the weight on the left stays as it is",
        ),
    ],
    ids=["alpha", "matrix", "one_number", "weight_left"],
)
def test_an_addmm_that_is_no_linear_is_left_alone_with_its_backward(
    function: Callable[[Any, Tensor], Tensor], parameters: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = Model(function, **{name: torch.randn(shape) for name, shape in parameters.items()})
    captured = capture(model, inputs())
    assert len(captured.plan.rows) == 3
    assert all_reasons(captured) == {reason}


def test_fp64_is_left_alone() -> None:
    captured = capture(nn.Linear(32, 16).double(), inputs().detach().double())
    assert all_reasons(captured) == {"float64 products stay as they are"}


def test_an_excluded_layer_is_left_alone_forward_and_backward() -> None:
    captured = capture(Stack(), inputs(), exclude=[r"blocks\.1\.", r"blocks"])
    by_layer = {row.layer: row.reason for row in captured.plan.rows}
    assert by_layer["blocks.1.up"] == r"high precision by the rule for layers 'blocks\\.1\\.'"  # the first that matches
    assert by_layer["blocks.0.up"] == "high precision by the rule for layers 'blocks'"
    assert captured.plan.quantized == ()


def test_without_a_quantiser_nothing_is_rewritten_and_the_plan_says_why() -> None:
    captured = capture(nn.Linear(32, 16), inputs(), recipe="none", passes=[MeanCenter()])
    assert all_reasons(captured) == {"no pass of this recipe quantises"}
    assert captured.final.python_code("").src == captured.graphs["joint"].python_code("").src


def test_inference_is_quantised_unless_asked_otherwise() -> None:
    model = nn.Linear(32, 16)
    assert all_reasons(capture(model, inputs(), training=False)) == {""}
    kept = capture(model, inputs(), training=False, inference="high-precision")
    assert all_reasons(kept) == {"inference, by option in high precision"}
    assert all_reasons(capture(model, inputs(), inference="high-precision")) == {""}


@pytest.mark.parametrize(("tokens", "centered"), [(31, False), (32, True)])
def test_known_token_counts_decide_on_centring_whichever_axis_they_are(tokens: int, centered: bool) -> None:
    model = Model(lambda s, x: s.w @ x.T, w=torch.randn(64, 48))
    for captured in (capture(nn.Linear(32, 48), inputs(tokens)), capture(model, inputs(tokens, 48))):
        assert {row.centered for row in captured.plan.rows} == {centered}


def test_unknown_token_counts_are_centred_and_no_size_is_specialised() -> None:
    captured = capture(nn.Linear(32, 48), inputs(8), dynamic=True)
    assert {row.centered for row in captured.plan.rows} == {True}
    assert not captured.row("", "fprop").m.isdigit()


def streams(captured: Capture) -> dict[tuple[str, str, str, int], int]:
    """The stream of every operand of a quantised product, by layer, role, kind and how many came before."""
    found: dict[tuple[str, str, str, int], int] = {}
    for row in captured.plan.quantized:
        for operand in _operands(row):
            key = (row.layer, row.role, operand.kind)
            found[*key, sum(k[:3] == key for k in found)] = operand.stream
    return found


def _operands(row: GemmPlan) -> tuple[OperandPlan, OperandPlan]:
    assert row.a is not None
    assert row.b is not None
    return row.a, row.b


def test_a_stream_is_the_hash_of_layer_role_kind_and_call() -> None:
    found = streams(capture(Stack(), inputs()))
    assert found["blocks.0.up", "wgrad", "gradient", 0] == zlib.crc32(b"blocks.0.up/wgrad/gradient/0")
    assert found["blocks.1.up", "fprop", "activation", 1] == zlib.crc32(b"blocks.1.up/fprop/activation/1")
    # of two calls, the backward meets the second first
    assert found["blocks.1.up", "wgrad", "gradient", 0] == zlib.crc32(b"blocks.1.up/wgrad/gradient/1")
    assert len(set(found.values())) == len(found)


def test_neither_checkpointing_nor_an_excluded_layer_shifts_a_stream() -> None:
    plain = streams(capture(Stack(), inputs()))
    assert streams(capture(Stack(checkpointed=(0, 1)), inputs())) == plain
    fewer = streams(capture(Stack(), inputs(), exclude=["blocks.0.down"]))
    assert fewer == {key: stream for key, stream in plain.items() if key[0] != "blocks.0.down"}
    frozen = Stack()
    frozen.blocks[0].requires_grad_(False)
    kept = streams(capture(frozen, inputs()))
    assert kept.items() <= plain.items()
    assert len(kept) < len(plain)


def test_streams_that_collide_move_on_in_graph_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda data: 2**32 - 2)
    captured = capture(nn.Linear(32, 48), inputs())
    drawn = [operand.stream for row in captured.plan.rows for operand in _operands(row)]
    assert drawn == [2**32 - 2, 2**32 - 1, 0, 1, 2, 3]


@pytest.mark.parametrize(("recipe", "checkpointed"), [("averis", (0, 1, 2)), ("nvfp4-plain", (0,))])
def test_checkpointing_does_not_change_a_bit_of_the_gradients(recipe: str, checkpointed: tuple[int, ...]) -> None:
    plain, x = Stack(), inputs()
    again = Stack(checkpointed)
    again.load_state_dict(plain.state_dict())
    run = functools.partial(capture, recipe=recipe, seed=3)
    expected, got = run(plain, x), run(again, x)
    assert torch.equal(got.output, expected.output)
    assert got.gradients.keys() == expected.gradients.keys()
    for name, value in expected.gradients.items():
        assert torch.equal(got.gradients[name], value), name


def test_the_options_of_a_pass_reach_every_row() -> None:
    for tile, rounding, min_rows in ((1, "nearest", 1), (16, "stochastic", 100), (1, "stochastic", 1)):
        quantizer = QuantizeFP4(weights=Operand(square=tile == 16), gradients=Operand(rounding=rounding))
        passes = [MeanCenter(min_rows=min_rows), quantizer]
        captured = capture(nn.Linear(32, 48), inputs(64), passes=passes)
        operands = [operand for row in captured.plan.rows for operand in _operands(row)]
        assert {operand.tile_rows for operand in operands if operand.kind == "weight"} == {tile}
        assert {operand.stochastic for operand in operands if operand.kind == "gradient"} == {rounding == "stochastic"}
        assert {operand.centered for operand in operands if operand.kind != "weight"} == {min_rows == 1}


def quantized_roles(captured: Capture) -> dict[str, set[str]]:
    """Which GEMMs of each layer are quantised."""
    found: dict[str, set[str]] = {}
    for row in captured.plan.rows:
        found.setdefault(row.layer, set()).update({row.role} if row.quantized else set())
    return found


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule(gemms=("fprop",), high_precision=True), {"dgrad", "wgrad"}),  # a forward in high precision
        (Rule(gemms=("dgrad", "wgrad"), high_precision=True), {"fprop"}),  # only the forward in four bits
    ],
)
def test_forward_only_is_one_rule(rule: Rule, left: set[str]) -> None:
    model, x = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)), inputs()
    captured = capture(model, x, rules=[rule])
    assert quantized_roles(captured) == {"0": left, "2": left}
    reasons = all_reasons(captured) - {""}
    assert reasons == {f"high precision by the rule for {', '.join(rule.gemms)} of all layers"}
    exact = gradients(model, model, x)
    kept = "fprop" in rule.gemms
    assert torch.allclose(captured.output, exact.output, rtol=1e-5, atol=1e-5) is kept
    straight_through = torch.allclose(captured.gradients["2.bias"], exact.gradients["2.bias"], rtol=1e-5, atol=1e-4)
    assert straight_through  # the bias gradient is a sum, never quantised


def test_a_rule_gives_operands_of_single_gemms_another_format_rounding_and_mean() -> None:
    rules = [
        Rule(layers=r"\.up$", gemms=("wgrad",), format="mxfp4", gradients=Operand(center=False, scale="floor")),
        Rule(layers=r"\.up$", activations=Operand(format="identity")),
        Rule(layers="up", high_precision=True),  # never reached by the layers above
    ]
    captured = capture(Stack(), inputs(), rules=rules)
    wgrad, fprop = captured_row(captured, "blocks.0.up", "wgrad"), captured_row(captured, "blocks.0.up", "fprop")
    assert wgrad.a == dataclasses.replace(
        OperandPlan("gradient", "mxfp4", "floor", stochastic=True), stream=wgrad.a.stream
    )
    assert (wgrad.b.format, wgrad.b.scale, wgrad.b.centered) == ("mxfp4", "even", True)
    assert (fprop.a.format, fprop.b.format, fprop.carrier) == ("identity", "nvfp4", "fp32")
    down = captured_row(captured, "blocks.0.down", "wgrad")
    assert (down.a.format, down.b.format, down.a.centered) == ("nvfp4", "nvfp4", True)


def captured_row(captured: Capture, layer: str, role: str) -> Any:
    return next(row for row in captured.plan.rows if (row.layer, row.role) == (layer, role))


def test_last_blocks_and_everything_in_them() -> None:
    captured = capture(Stack(), inputs(), rules=[Rule(last_blocks=1, high_precision=True)])
    every = {"fprop", "dgrad", "wgrad"}
    expected = {"blocks.0.up": every, "blocks.0.down": every, "blocks.1.up": set(), "blocks.1.down": set()}
    assert quantized_roles(captured) == expected
    assert "high precision by the rule for the last block" in all_reasons(captured)


def test_mixed_formats_are_multiplied_right() -> None:
    model, x = nn.Linear(40, 24), inputs(50, 40)
    rules = [Rule(weights=Operand(format="mxfp4"), gradients=Operand(format="identity"))]
    exact, got = gradients(model, model, x), capture(model, x, rules=rules)
    for name, limit in (("weight", 0.12), ("input0", 0.2), ("bias", 1e-5)):
        error = float((got.gradients[name] - exact.gradients[name]).norm() / exact.gradients[name].norm())
        assert error < limit, name
    assert 0.01 < float((got.output - exact.output).norm() / exact.output.norm()) < 0.2


def test_the_modes_of_the_mean_reach_the_plan_and_differ_in_numbers() -> None:
    model = nn.Linear(32, 48)
    x = (torch.randn(64, 32) + 10 * torch.randn(32)).requires_grad_()
    exact = gradients(model, model, x)
    errors = {}
    for mode in ("hp", "requant", "paper"):
        captured = capture(model, x, recipe="averis", passes=[MeanCenter(mode=mode)])
        assert {row.mean_mode for row in captured.plan.rows} == {mode}
        errors[mode] = float((captured.output - exact.output).norm() / exact.output.norm())
    assert errors["hp"] < 0.05 < errors["requant"] < 0.25
    assert 0.05 < errors["paper"] < 0.25
    assert errors["paper"] != errors["requant"]


def test_an_evaluation_rounds_nothing_stochastically() -> None:
    passes = [QuantizeFP4(activations=Operand(rounding="stochastic"))]
    trained = capture(nn.Linear(32, 48), inputs(), passes=passes)
    assert captured_row(trained, "", "fprop").a.stochastic
    evaluated = capture(nn.Linear(32, 48), inputs(), passes=passes, training=False)
    assert not captured_row(evaluated, "", "fprop").a.stochastic
