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

from spectral_compile import MeanCenter, QuantizeFP4
from spectral_compile.plan import GemmPlan, OperandPlan
from tests.capture import Capture, capture


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
    activation, weight, gradient = (OperandPlan(kind) for kind in ("activation", "weight", "gradient"))
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
        assert (row.format, row.carrier, row.min_rows, row.dtype) == ("nvfp4", "fp32", 32, "float32")
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
    assert by_layer["blocks.1.up"] == r"excluded by 'blocks\\.1\\.'"  # the first that matches
    assert by_layer["blocks.0.up"] == "excluded by 'blocks'"
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
        passes = [MeanCenter(min_rows=min_rows), QuantizeFP4(weight_tile=tile, gradient_rounding=rounding)]
        captured = capture(nn.Linear(32, 48), inputs(64), passes=passes)
        operands = [operand for row in captured.plan.rows for operand in _operands(row)]
        assert {operand.tile_rows for operand in operands if operand.kind == "weight"} == {tile}
        assert {operand.stochastic for operand in operands if operand.kind == "gradient"} == {rounding == "stochastic"}
        assert {operand.centered for operand in operands if operand.kind != "weight"} == {min_rows == 1}
