"""The metrics by hand, and the page that holds their results."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import numerics, numerics_order, numerics_published, numerics_rounding
from benchmarks import numerics_inputs as inputs
from benchmarks.numerics_metrics import Setting, expected_stochastic, relative_error, round_trip, settings, sqnr
from benchmarks.numerics_order import differing_bytes
from benchmarks.numerics_stochastic import product_over_draws
from benchmarks.numerics_tables import Table, differences, updated
from spectral_compile.formats import e2m1

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
NVFP4 = Setting("nvfp4", "amax")


def test_the_page_says_what_a_fresh_run_prints() -> None:
    quick = (numerics_published.published_table, numerics_published.few_rows_table, numerics_order.order_table)
    with numerics.one_thread():
        tables = [*numerics_rounding.tables(), *(table() for table in quick)]
        assert differences(PAGE.read_text(), tables) == []


@pytest.mark.slow
def test_the_page_says_what_a_fresh_run_prints_in_all_its_tables() -> None:
    page = PAGE.read_text()
    with numerics.one_thread():
        tables = list(numerics.tables())
    assert differences(page, tables) == []
    assert page.count("<!-- table: ") == len(tables)


def by_hand() -> torch.Tensor:
    """[1, 32]. The first block's unit is 1; the second's largest value is 5.7, its scale 425.6 rounded down to 416."""
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([6.0, 1.2, 0.2, -0.1])
    x[0, 16] = 5.7
    return x


def test_metrics_by_hand() -> None:
    trip = round_trip(by_hand(), NVFP4)
    low = 6 * 416 / 448
    assert trip.unit[0, ::16].tolist() == pytest.approx([1, 416 / 448])
    assert trip.back[0, [0, 1, 2, 3, 16]].tolist() == pytest.approx([6, 1, 0, 0, low])
    assert trip.clipped() == 1 / 32  # 6 units exactly are not clipped
    assert trip.zeroed() == 2 / 32  # zeros are not counted
    noise, energy = 0.2**2 + 0.2**2 + 0.1**2 + (5.7 - low) ** 2, 36 + 1.2**2 + 0.2**2 + 0.1**2 + 5.7**2
    assert trip.sqnr() == pytest.approx(10 * math.log10(energy / noise))
    assert trip.shrinkage() == pytest.approx((36 + 1.2 + low * 5.7) / energy - 1, abs=1e-6)
    assert trip.largest_shrinkage() == pytest.approx((0 + low / 5.7 - 1) / 2, abs=1e-6)


def test_the_unit_of_square_blocks_is_that_of_each_value() -> None:
    x = inputs.gaussian(32, 64)
    x[:16, :16] *= 8
    for name in ("nvfp4", "mxfp4"):
        trip = round_trip(x, Setting(name, "amax" if name == "nvfp4" else "floor", square=True))
        magnitudes = (trip.back / trip.unit).abs()
        assert (magnitudes[..., None] - torch.tensor(e2m1.MAGNITUDES)).abs().amin(-1).max() < 1e-5


def test_a_gain_leaves_only_its_effect_on_powers_of_two() -> None:
    x = inputs.gaussian(64, 256)
    gain = inputs.octave(64, band=32)
    assert gain.unique().tolist() == pytest.approx([1, math.sqrt(2)])
    plain, gained = (round_trip(x, Setting("mxfp4", "floor"), by) for by in (1.0, gain))
    assert torch.equal(plain.back[:32], gained.back[:32])
    by_hand = round_trip(x[32:] * gain[32:], Setting("mxfp4", "floor"))
    assert torch.equal(gained.back[32:], by_hand.back / gain[32:])
    assert torch.equal(gained.unit[32:], by_hand.unit / gain[32:])
    assert round_trip(x, NVFP4, 2.0).sqnr() == round_trip(x, NVFP4).sqnr()


def test_relative_errors() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), reference) == pytest.approx(0.1)
    assert sqnr(reference, torch.tensor([3.0, 4.5])) == pytest.approx(20)


def test_the_expected_value_of_stochastic_rounding_is_the_mean_over_all_random_bytes() -> None:
    y = torch.cat((torch.linspace(-6, 6, 1201), torch.randn(500).clamp(-6, 6), torch.tensor(e2m1.MAGNITUDES)))
    codes = e2m1.encode_stochastic(y[:, None].expand(-1, 256), torch.arange(256))
    assert torch.equal(expected_stochastic(y), e2m1.decode(codes).double().mean(1))


def test_shrinkage_of_stochastic_rounding_is_that_of_many_draws() -> None:
    x, setting = inputs.gaussian(64, 256), Setting("mxfp4", "floor", stochastic=True)
    drawn = torch.stack([round_trip(x, setting, seed=seed).back.double() for seed in range(50)]).mean(0)
    assert round_trip(x, setting).shrinkage() == pytest.approx(float((drawn * x).sum() / (x * x).sum()) - 1, abs=1e-3)


def test_every_format_rule_and_rounding_has_a_label_of_its_own() -> None:
    labels = [setting.label for setting in settings()]
    assert len(labels) == len(set(labels)) == 13
    assert "nvfp4 four_six, stochastic" not in labels


def test_inputs_are_what_their_names_say() -> None:
    assert inputs.outlier_channels(2048).nonzero().flatten().tolist() == [512, 1536]
    deviations = inputs.with_outliers(512, 1024).std(0)
    assert (deviations > 25).nonzero().flatten().tolist() == [512]
    x = inputs.with_mean(512, 1024, 10)
    assert x.mean(0).std().item() == pytest.approx(10, rel=0.1)
    assert x.std(0).mean().item() == pytest.approx(1, rel=0.01)
    # P(|t| > 3.182) is 5 % with 3 degrees of freedom
    assert (inputs.student_t(512, 1024).abs() > 3.182).double().mean().item() == pytest.approx(0.05, abs=0.002)
    assert torch.equal(inputs.gaussian(8, 8), inputs.gaussian(8, 8))


def test_draws_to_nearest_are_all_bias_and_stochastic_ones_mostly_noise() -> None:
    d, w = inputs.gaussian(32, 256).double(), inputs.gaussian(256, 64, seed=1).double()
    back = round_trip(d.float(), NVFP4).back.double()
    shrinkage, bias, noise = product_over_draws(d, w, NVFP4, draws=1)
    assert (bias, noise) == (pytest.approx(relative_error(back @ w, d @ w)), 0)
    assert shrinkage == pytest.approx(float((back @ w * (d @ w)).sum() / (d @ w).square().sum()) - 1)
    _, bias, noise = product_over_draws(d, w, Setting("nvfp4", "headroom", stochastic=True), draws=16)
    assert bias < 0.03 < 0.1 < noise


def test_the_number_of_threads_changes_no_digit() -> None:
    d, w = inputs.gaussian(128, 512).double(), inputs.gaussian(512, 256, seed=1).double()
    setting, threads, results = Setting("nvfp4", "amax", stochastic=True), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append((*product_over_draws(d, w, setting, draws=2), round_trip(d.float(), setting).sqnr()))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_a_scale_on_a_tie_depends_on_the_order_of_operations() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16] = 6.0, 0.28125  # 448 * 0.28125 / 6 = 21, half-way between the E4M3 values 20 and 22
    assert set(differing_bytes(x).values()) == {0.5}
    assert set(differing_bytes(inputs.gaussian(16, 64)).values()) == {0.0}


TABLE = Table("one", "A table", ("what", "how", "much"), [["a", "b", "1.0"], ["c", "d", "2.0"]], labels=2)
MARKDOWN = "<!-- table: one -->\n| what | how | much |\n| --- | --- | ---: |\n| a | b | 1.0 |\n| c | d | 2.0 |\n"


def test_a_table_replaces_the_one_in_the_page_and_nothing_else() -> None:
    assert TABLE.markdown() == MARKDOWN
    page = "before\n\n<!-- table: one -->\n| old |\n| --- |\n\nafter\n| another |\n"
    assert updated(page, [TABLE]) == f"before\n\n{MARKDOWN}\nafter\n| another |\n"
    assert updated("<!-- table: one -->\n", [TABLE]) == MARKDOWN
    with pytest.raises(ValueError, match="0 places for table 'one'"):
        updated("no place", [TABLE])


def test_differences_name_the_rows() -> None:
    assert differences(MARKDOWN, [TABLE]) == []
    assert differences(MARKDOWN.replace("2.0", "2.1"), [TABLE]) == ["- | c | d | 2.1 |", "+ | c | d | 2.0 |"]


def test_the_command_checks_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tables(gradient_ratio: float) -> Iterator[Table]:
        yield TABLE

    monkeypatch.setattr(numerics, "tables", tables)
    page = tmp_path / "page.md"
    page.write_text(MARKDOWN.replace("2.0", "2.1"))
    assert numerics.main(["--check", str(page)]) == 1
    assert "+ | c | d | 2.0 |" in capsys.readouterr().err
    assert numerics.main(["--write", str(page)]) == 0
    assert numerics.main(["--check", str(page)]) == 0
    assert numerics.main(["--markdown"]) == 0
    assert capsys.readouterr().out == MARKDOWN + "\n"
    assert numerics.main([]) == 0
    assert "A table" in capsys.readouterr().out
