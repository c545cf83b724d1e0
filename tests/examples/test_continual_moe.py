"""The comparison of head-wise routing, in miniature."""

import json
import math
import statistics

import pytest
import torch

from examples import continual_moe
from examples.continual_moe import Outcome, arm_model, flops, parameters, row, sizes_of, spread, train
from spectral_compile.pipeline import observe


def test_a_table_a_family_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(continual_moe, "SEQUENCES", ("values",))
    monkeypatch.setattr(continual_moe, "FAMILIES", ("mixed",))
    monkeypatch.setattr(continual_moe, "ARMS", ("original", "top-4", "subtoken"))
    monkeypatch.setattr(continual_moe, "TASKS", 2)
    assert continual_moe.main(["--steps", "2", "--seeds", "2", "--codegen", "eager", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "**values, mixed**" in printed
    assert printed.count("| subtoken |") == 2  # the table, and what it costs
    record = json.loads((tmp_path / "result.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["original", "top-4", "subtoken"]
    assert set(record["parameters"].values()) == {parameters(sizes_of("original"))}
    for arm in record["arms"]:
        assert len(arm["runs"]) == 2
        for run in arm["runs"]:
            R = run["R"]
            assert run["op"] == pytest.approx(statistics.fmean(R[-1]), abs=1e-4)
            assert run["bwt"] == pytest.approx(statistics.fmean(R[-1][i] - R[i][i] for i in range(1)), abs=2e-4)
            assert 1 <= run["route"] <= 324
            assert 0 <= run["entropy"] <= 2.08  # ln 8
            assert 2 <= run["union"] <= 8


def test_arms_learn_differently_from_the_same_start(monkeypatch):
    monkeypatch.setattr(continual_moe, "TASKS", 2)
    first = {arm: train("values", "aligned", arm, 0, 12, "eager") for arm in ("original", "top-4", "subtoken", "vote")}
    assert len({outcome.bwt for outcome in first.values()}) >= 3
    assert first["original"].R[0][0] > 0.3  # of 8 classes
    assert train("values", "aligned", "subtoken", 0, 12, "eager") == first["subtoken"]


def test_tasks_in_slices_of_their_own_are_not_forgotten_by_subtokens():
    found = train("separate", "aligned", "subtoken", 1, 30, "eager")
    R = torch.tensor(found.R)
    assert all((R[i:, i] == R[i, i]).all() for i in range(4))
    assert found.bwt == 0
    assert found.learned > 0.6
    mixed = train("separate", "mixed", "subtoken", 1, 8, "eager")
    assert mixed.bwt != 0


@pytest.mark.parametrize("arm", ["subtoken", "bank", "mask", "vote"])
def test_flops_are_those_of_the_products_in_the_graph(arm):
    graphs = []

    def count(stage, graph, plan):
        products = [
            node for node in graph.nodes if node.target in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        ]
        shapes = [[one.meta["val"].shape for one in node.args] for node in products]
        graphs.append(sum(2 * math.prod(a) * b[-1] for a, b in shapes))

    _, forward = arm_model(arm, "eager")
    torch._dynamo.reset()
    stop = observe(count)
    with torch.no_grad():
        forward(torch.randn(10, 5, 32))
    stop()
    attention_and_head = 2 * 5 * 4 * 8 + 2 * 32 * (32 + 32)
    assert graphs[0] / 10 - attention_and_head == flops(arm)


def test_flops_are_matched():
    router, up, down = 2 * 8 * 32, 2 * 32 * 32, 2 * 32 * 16
    assert flops("original") == router + 2 * (up + down) == flops("subtoken") == flops("vote")
    assert flops("top-4") == router + 4 * (up + down) == flops("bank")


def outcome(bwt, route=2.0):
    return Outcome(0, [], 0.9, 0.8, bwt, route, 9.0, 100.0, 2.0, 2.0, 0.1, 0.1)


def test_rows_show_the_spread_and_differences_of_one_seed():
    originals, others = [outcome(-0.3), outcome(-0.2)], [outcome(-0.1), outcome(-0.1, 4.0)]
    assert row("original", originals, originals).split(" | ")[3:5] == ["-0.250 ± 0.071", "-"]
    assert row("bank", others, originals).split(" | ")[3:6] == ["-0.100 ± 0.000", "+0.150 ± 0.071", "3.0 ± 1.4"]
    assert spread("{:.1f}", [2.0]) == "2.0"


def test_bad_arguments(capsys):
    with pytest.raises(SystemExit):
        continual_moe.main(["--seeds", "0"])
    assert "1 or more" in capsys.readouterr().err
