"""The comparison of head-wise routing, in miniature."""

import json
import statistics

import pytest
import torch

from examples import continual_moe
from examples.continual_moe import ARMS, Outcome, flops, parameters, row, sizes_of, spread, train


def test_a_table_a_family_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(continual_moe, "SEQUENCES", ("values",))
    monkeypatch.setattr(continual_moe, "FAMILIES", ("mixed",))
    assert continual_moe.main(["--steps", "2", "--seeds", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "**values, mixed**" in printed
    assert printed.count("| subtoken |") == 2  # the table, and what it costs
    record = json.loads((tmp_path / "result.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == list(ARMS)
    assert set(record["parameters"].values()) == {parameters(sizes_of("original"))}
    for arm in record["arms"]:
        assert len(arm["runs"]) == 2
        for run in arm["runs"]:
            R = run["R"]
            assert run["op"] == pytest.approx(statistics.fmean(R[-1]))
            assert run["bwt"] == pytest.approx(statistics.fmean(R[-1][i] - R[i][i] for i in range(3)))
            assert 1 <= run["route"] <= 324
            assert 0 <= run["entropy"] <= 2.08  # ln 8
            assert 2 <= run["union"] <= 8


def test_arms_learn_differently_from_the_same_start():
    first = {arm: train("values", "aligned", arm, 0, 12) for arm in ("original", "subtoken", "bank", "mask", "vote")}
    assert len({outcome.bwt for outcome in first.values()}) >= 4
    assert first["original"].R[0][0] > 0.3  # of 8 classes
    assert train("values", "aligned", "subtoken", 0, 12) == first["subtoken"]


def test_tasks_in_slices_of_their_own_are_not_forgotten_by_subtokens():
    found = train("separate", "aligned", "subtoken", 1, 30)
    R = torch.tensor(found.R)
    assert all((R[i:, i] == R[i, i]).all() for i in range(4))
    assert found.bwt == 0
    assert found.learned > 0.6
    mixed = train("separate", "mixed", "subtoken", 1, 8)
    assert mixed.bwt != 0


def test_flops_by_hand():
    router, up, down = 2 * 8 * 32, 2 * 32 * 32, 2 * 32 * 16
    assert flops("original", 2) == router + 2 * (up + down) == flops("subtoken", 5) == flops("vote", 2)
    assert flops("bank", 5) == router + 2 * up + 8 * down == flops("top-4", 4)
    assert flops("mask", 4.5) == router + 2 * up + 4.5 * down


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
