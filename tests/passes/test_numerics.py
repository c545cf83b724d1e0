"""Measuring inside compiled graphs: where operators land, that no number changes, and which calls are measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spectral_compile as spectral
from spectral_compile.config import Options
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.lowering.carriers import to_carriers
from spectral_compile.measuring import sessions
from spectral_compile.pipeline import PassManager
from spectral_compile.scopes import Scopes
from tests.capture import Capture, calls, capture, copy_of, count

RECIPES = ["nvfp4-plain", "averis", "averis+hadamard", "averis-mxfp4"]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.q(x)) * torch.sigmoid(self.k(x))))


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_latest", {})


def inputs() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(64, 32, requires_grad=True)


def both(**options: Any) -> tuple[Capture, Capture]:
    """The same model and rounding noise without measurements and with them."""
    torch.manual_seed(0)
    model = Heads()
    return capture(model, inputs(), **options), capture(model, inputs(), **options, numerics=1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_number_changes(recipe: str) -> None:
    plain, measured = both(recipe=recipe)
    assert torch.equal(plain.output, measured.output)
    for name, gradient in plain.gradients.items():
        assert torch.equal(gradient, measured.gradients[name]), name


def test_each_quantisation_is_measured_once_under_the_names_of_all_products_that_read_it() -> None:
    plain, measured = both(recipe="nvfp4-plain")
    graph = measured.graphs["numerics"]
    assert count(plain.final, "spectral.measure") == 0
    assert "numerics" not in plain.graphs
    assert count(graph, "spectral.quantize") == count(plain.final, "spectral.quantize")
    assert count(graph, "spectral.measure") == count(graph, "spectral.quantize")
    names = [tuple(name.split("\t")) for node in calls(graph, "spectral.measure") for name in node.args[-1]]  # type: ignore[union-attr]
    expected = {
        (row.layer, row.role, operand.kind) for row in measured.plan.rows for operand in (row.a, row.b) if operand
    }
    assert len(names) == len(set(names))
    assert set(names) == expected
    together = [set(node.args[-1]) for node in calls(graph, "spectral.measure")]  # type: ignore[arg-type]
    assert {"q\tfprop\tactivation", "k\tfprop\tactivation"} in together
    assert {(row["layer"], row["role"], row["operand"]) for row in spectral.numerics().rows} == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_codes_that_nobody_keeps_are_still_not_made(recipe: str) -> None:
    plain, measured = both(recipe=recipe)
    lowered = []
    for graph in (plain.final, measured.graphs["numerics"]):
        lowered.append(copy_of(graph))
        to_carriers(lowered[-1])
        lowered[-1].lint()
    for name in ("quantize", "round", "carry", "amax"):
        assert count(lowered[0], f"spectral.{name}") == count(lowered[1], f"spectral.{name}"), name
    assert count(lowered[1], "spectral.measure") == count(measured.graphs["numerics"], "spectral.measure")


def test_products_are_compared_on_request_with_the_same_in_high_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 48)
    nearest = spectral.QuantizeFP4(gradients=spectral.Operand(rounding="nearest"))
    how: dict[str, Any] = {"recipe": "averis", "passes": [nearest], "numerics": spectral.Numerics(every=1, cosine=True)}
    run = capture(nn.Sequential(linear, nn.Tanh()), inputs(), **how)
    found = {row["role"]: row["cosine"] for row in spectral.numerics().rows if "cosine" in row}
    assert set(found) == {row.role for row in run.plan.quantized} == {"fprop", "dgrad", "wgrad"}
    assert all(0.95 < value < 1 for value in found.values())

    product = torch.atanh(run.output.double()).flatten()  # as the graph computed it, bias and mean put back
    exact = linear(inputs()).detach().double().flatten()
    cosine = torch.dot(product, exact) / (product.norm() * exact.norm())
    assert found["fprop"] == pytest.approx(cosine.item(), abs=1e-5)


def test_a_layer_that_is_called_twice_has_two_names_and_a_weight_it_shares_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(100 * torch.tanh(self.linear(x))))

    capture(Twice(), inputs(), recipe="nvfp4-plain", numerics=1)
    amax = {(row["layer"], row["role"]): row["amax"] for row in spectral.numerics().rows if row["operand"] != "weight"}
    assert {layer for layer, _ in amax} == {"linear", "linear (call 2)"}
    for role in ("fprop", "wgrad"):
        kind = [row for row in spectral.numerics().rows if row["role"] == role and row["operand"] == "activation"]
        assert [row["amax"] > 50 for row in kind] == [False, True], role
    weights = [row["layer"] for row in spectral.numerics().rows if row["operand"] == "weight"]
    assert sorted(weights) == sorted(2 * ["linear", "linear (call 2)"])  # fprop and dgrad


def test_a_pass_that_is_disabled_measures_nothing(tmp_path: Path) -> None:
    file = tmp_path / "numerics.jsonl"
    options = {"numerics": spectral.Numerics(every=1, file=str(file)), "disable": "numerics"}
    run = capture(Heads(), inputs(), recipe="nvfp4-plain", **options)
    assert "numerics" not in run.graphs
    assert not file.exists()


def test_where_and_how_often_is_not_part_of_the_code() -> None:
    keys = [
        PassManager(GraphFacts((), (), True), Scopes(Options(numerics=numerics))).uuid()
        for numerics in (
            None,
            spectral.Numerics(),
            spectral.Numerics(every=3, file="runs/a.jsonl"),
            spectral.Numerics(cosine=True),
        )
    ]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_identity_operands_are_not_measured() -> None:
    run = capture(Heads(), inputs(), recipe="identity", numerics=1)
    assert count(run.graphs["numerics"], "spectral.measure") == 0
    assert len(spectral.numerics()) == 0


def test_every_third_training_call_and_no_evaluation(tmp_path: Path) -> None:
    torch.compiler.reset()
    file = tmp_path / "numerics.jsonl"
    options = {"codegen": "eager", "numerics": spectral.Numerics(every=3, file=str(file))}
    model = torch.compile(nn.Sequential(nn.Linear(32, 32), nn.Tanh()), backend="spectral", options=options)
    for _ in range(5):
        model(torch.randn(32, 32)).sum().backward()
        with torch.no_grad():
            model(torch.randn(32, 32))
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
    assert sorted(set(steps)) == [0, 3]
    assert len(steps) == 2 * 4  # fprop and wgrad, two operands each


def test_a_dump_holds_them_and_its_report_shows_them(tmp_path: Path) -> None:
    torch.compiler.reset()
    options = {"codegen": "eager", "numerics": 1, "dump": str(tmp_path)}
    model = torch.compile(nn.Sequential(nn.Linear(32, 32), nn.Tanh()), backend="spectral", options=options)
    model(torch.randn(32, 32)).sum().backward()
    lines = (tmp_path / "000" / "numerics.jsonl").read_text().splitlines()
    assert {json.loads(line)["operand"] for line in lines} == {"activation", "weight", "gradient"}
    from spectral_compile.report.commands import main

    main(["report", str(tmp_path / "000")])
    assert "snr_db" in (tmp_path / "000" / "report.html").read_text().partition("application/json")[2]


def test_a_checkpointed_region_is_measured_once_a_step() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Heads()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    run = capture(Checkpointed(), inputs(), recipe="nvfp4-plain", numerics=1)
    rows = spectral.numerics().rows
    keys = [(row["layer"], row["role"], row["operand"]) for row in rows]
    assert len(keys) == len(set(keys)) >= 3 * len({row.layer for row in run.plan.quantized})
    assert all(row["snr_db"] > 10 for row in rows)


@pytest.mark.parametrize("recipe", ["averis", "averis-mxfp4"])
def test_through_inductor(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    results = []
    for more in ({}, {"numerics": spectral.Numerics(every=2, cosine=True, file=str(tmp_path / "n.jsonl"))}):
        torch.compiler.reset()
        spectral.manual_seed(5)
        torch.manual_seed(1)
        model = Heads()
        compiled = torch.compile(model, backend="spectral", options={"recipe": recipe, **more})
        for _ in range(2):
            compiled(inputs()).sum().backward()
        results.append([p.grad for p in model.parameters()])
    spectral.manual_seed(None)
    for plain, measured in zip(*results, strict=True):
        assert torch.equal(plain, measured)
    lines = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {0}
    assert {line["operand"] for line in lines} == {"activation", "weight", "gradient", "product"}
