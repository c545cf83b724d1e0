"""Two quantisations of a tensor become one: ops before and after, that no number changes, and what is left alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import spectral_compile
from spectral_compile import MeanCenter, Operand, QuantizeFP4
from spectral_compile.lowering.triton.pairs import pair_quantizers
from tests.capture import capture, copy_of, count
from tests.fake_kernels import equal_bits

spectral = torch.ops.spectral
HOW = ("nvfp4", "amax", 1, 1, False, 0)


def paired(graph: fx.Graph) -> fx.Graph:
    twin = copy_of(graph)
    pair_quantizers(twin)
    twin.lint()
    return twin


def results(graph: fx.Graph, arguments: list[Tensor]) -> list[Tensor]:
    return [r for r in fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*arguments) if r is not None]


def bound(graph: fx.Graph) -> list[Tensor]:
    """A value for each placeholder."""
    values = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    return [torch.randn(v.shape, dtype=v.dtype) if v.is_floating_point() else torch.tensor(7) for v in values]


def traced(function: Any, *inputs: Tensor) -> fx.Graph:
    return make_fx(function, tracing_mode="fake")(*inputs).graph


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "nvfp4-plain"},
        {"recipe": "averis"},
        {"recipe": "averis+hadamard"},
        {"recipe": "averis-mxfp4"},
        {"recipe": "averis", "passes": [MeanCenter(mode="paper")]},
        {"recipe": "nvfp4-plain", "passes": [QuantizeFP4(weights=Operand(square=False))]},
    ],
    ids=str,
)
def test_no_bit_changes(options: dict[str, Any]) -> None:
    graph = capture(nn.Linear(19, 40), torch.randn(45, 19, requires_grad=True), **options).final
    after = paired(graph)
    arguments = bound(graph)
    assert count(after, "spectral.quantize_pair") >= 2  # activation and gradient
    for got, expected in zip(results(after, arguments), results(graph, arguments), strict=True):
        if options["recipe"] in ("nvfp4-plain", "averis-mxfp4") or got.dtype == torch.uint8:
            assert equal_bits(got, expected)
        else:
            torch.testing.assert_close(got, expected)


def test_ops_before_and_after() -> None:
    before = capture(nn.Linear(32, 16), torch.randn(48, 32, requires_grad=True), recipe="averis").final
    after = paired(before)
    assert (count(before, "spectral.quantize"), count(before, "spectral.quantize_pair")) == (5, 0)
    assert (count(after, "spectral.quantize"), count(after, "spectral.quantize_pair")) == (1, 2)  # a weight's is one
    assert count(after, "spectral.token_mean_amax") == count(after, "spectral.token_mean_nonzero_amax") == 1
    assert count(after, "spectral.amax") == 0
    for pair in after.find_nodes(op="call_function", target=spectral.quantize_pair.default):
        assert pair.args[9] is not None
        assert pair.args[18] is not None


def test_each_side_keeps_its_own_way() -> None:
    def function(x: Tensor, mean: Tensor, rows: Tensor, seed: Tensor) -> list[Tensor]:
        col = spectral.quantize(x, mean, rows, seed, "mxfp4", "ceil", 0, 32, True, 5)
        row = spectral.quantize(x, None, None, None, "nvfp4", "four_six", 1, 16, False, 0)
        return [*row, *col]

    inputs = (torch.randn(40, 50), torch.randn(50), torch.ones(40), torch.tensor(3))
    after = paired(traced(function, *inputs))
    assert (count(after, "spectral.quantize"), count(after, "spectral.quantize_pair")) == (0, 1)
    for got, expected in zip(results(after, list(inputs)), function(*inputs), strict=True):
        assert equal_bits(got, expected)


def test_a_quantisation_that_depends_on_the_other_stays() -> None:
    def function(x: Tensor) -> list[Tensor]:
        _, _, scale = spectral.quantize(x, None, None, None, *HOW)
        return [*spectral.quantize(x, scale.expand(50), None, None, "nvfp4", "amax", 0, 1, False, 0)]

    after = paired(traced(function, torch.randn(40, 50)))
    assert (count(after, "spectral.quantize"), count(after, "spectral.quantize_pair")) == (2, 0)


def test_a_place_that_is_none_is_not_found() -> None:
    """The second's mean comes after the first's results are read: nothing else in the graph is moved."""

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        codes, _, _ = spectral.quantize(x, None, None, None, *HOW)
        read = codes + 1
        col = spectral.quantize(x, y + 1, None, None, "nvfp4", "amax", 0, 1, False, 0)
        return [read, *col]

    inputs = (torch.randn(40, 50), torch.randn(50))
    after = paired(traced(function, *inputs))
    assert count(after, "spectral.quantize_pair") == 0
    for got, expected in zip(results(after, list(inputs)), function(*inputs), strict=True):
        assert equal_bits(got, expected)


def test_other_tensors_the_same_axis_and_identity_stay() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        col = ("nvfp4", "amax", 0, 1, False, 0)
        return [
            *spectral.quantize(x, None, None, None, *HOW),
            *spectral.quantize(y, None, None, None, *col),
            *spectral.quantize(x, None, None, None, "nvfp4", "headroom", 1, 1, False, 0),
            *spectral.quantize(x, None, None, None, "identity", "", 0, 1, False, 0),
        ]

    after = paired(traced(function, torch.randn(40, 50), torch.randn(40, 50)))
    assert (count(after, "spectral.quantize"), count(after, "spectral.quantize_pair")) == (4, 0)


def test_of_three_quantisations_two_are_paired_once() -> None:
    def function(x: Tensor) -> list[Tensor]:
        results = [spectral.quantize(x, None, None, None, "mxfp4", s, 0, 1, False, 0) for s in ("floor", "ceil")]
        return [*spectral.quantize(x, None, None, None, *HOW), *results[0], *results[1]]

    x = torch.randn(40, 50)
    after = paired(traced(function, x))
    assert (count(after, "spectral.quantize"), count(after, "spectral.quantize_pair")) == (1, 1)
    for got, expected in zip(results(after, [x]), function(x), strict=True):
        assert equal_bits(got, expected)


def test_nothing_imports_triton_but_what_registers_kernels() -> None:
    """Compiled for a CPU, a model needs none."""
    package = Path(spectral_compile.__file__).parent
    lowering = package / "lowering/triton"
    files = {*package.rglob("*.py")} - {*lowering.rglob("*.py")} | {lowering / "__init__.py", lowering / "pairs.py"}
    for file in files:
        imported = re.findall(r"^(?:from|import) (\S*triton\S*)(?: import (\w+))?", file.read_text(), re.MULTILINE)
        assert imported in ([], [("spectral_compile.lowering.triton.pairs", "pair_quantizers")]), file
