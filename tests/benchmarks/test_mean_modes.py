"""The statement of the methods itself: exact without rounding, and by hand with it."""

import pytest
import torch
from torch import Tensor

from benchmarks.mean_modes import MODES, Mode, Quantisers, dgrad, fp4, fprop, wgrad
from spectral_compile import formats
from spectral_compile.formats.hadamard import hadamard


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [64, 48], w [32, 48], d [64, 32], with means of ten deviations and of a half."""
    x = torch.randn(64, 48) + 10 * torch.randn(48)
    return x.to(dtype), torch.randn(32, 48).to(dtype), (torch.randn(64, 32) + 0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_exact_where_nothing_is_rounded(mode: Mode, dtype: torch.dtype) -> None:
    x, w, d = operands(dtype)
    wide_x, wide_w, wide_d = x.double(), w.double(), d.double()
    for value, exact in (
        (fprop(x, w, Quantisers(), mode), wide_x @ wide_w.T),
        (dgrad(d, w, Quantisers(), mode), wide_d @ wide_w),
        (wgrad(d, x, Quantisers(), mode), wide_d.T @ wide_x),
    ):
        assert value.dtype == torch.float64
        assert (value - exact).norm() / exact.norm() < (1e-13 if dtype == torch.float64 else 1e-6)


# x 1.4 and 4, mean 2.7; w .6; d .6 and 2, mean 1.3. Rounded to integers: residuals -1 and 1 (requant: of x - 3, -2 and
# 1; of d - 1, 0 and 1), means 3 and 1, weight 1.
BY_HAND: dict[Mode, tuple[list[float], list[float], float]] = {
    "plain": ([1, 4], [1, 2], 1 * 1 + 2 * 4),
    "hp": ([-1 + 2.7 * 0.6, 1 + 2.7 * 0.6], [-1 + 1.3 * 0.6, 1 + 1.3 * 0.6], 2 + 2.6 * 2.7),
    "requant": ([-2 + 3, 1 + 3], [0 + 1, 1 + 1], 1 + 2.6 * 3 + 1 * (5.4 - 2 * 3)),
    "paper": ([-1 + 3, 1 + 3], [-1 + 1, 1 + 1], 0 * 2 + 2 * 4),
}


@pytest.mark.parametrize("mode", MODES)
def test_rounding_to_integers_by_hand(mode: Mode) -> None:
    def rounded(x: Tensor, axis: int) -> Tensor:
        return x.round()

    x, w, d = (torch.tensor(values, dtype=torch.float64)[:, None] for values in ([1.4, 4.0], [0.6], [0.6, 2.0]))
    q = Quantisers(rounded, rounded, rounded, rounded)
    y, dx, dw = BY_HAND[mode]
    assert fprop(x, w, q, mode).flatten().tolist() == pytest.approx(y)
    assert dgrad(d, w, q, mode).flatten().tolist() == pytest.approx(dx)
    assert wgrad(d, x, q, mode).item() == pytest.approx(dw)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_run_along_the_contracted_axis_and_those_of_a_mean_along_its_features(mode: Mode) -> None:
    calls: list[tuple[str, int]] = []

    def recorder(name: str):  # type: ignore[no-untyped-def]
        def quantiser(x: Tensor, axis: int) -> Tensor:
            calls.append((name, axis))
            return x

        return quantiser

    q = Quantisers(*(recorder(name) for name in ("x", "w", "d", "mean")))
    x, w, d = operands(torch.float32)
    for product, expected in (
        (lambda: fprop(x, w, q, mode), {("x", 1), ("w", 1)}),
        (lambda: dgrad(d, w, q, mode), {("d", 1), ("w", 0)}),
        (lambda: wgrad(d, x, q, mode), {("d", 0), ("x", 0)}),
    ):
        calls.clear()
        product()
        assert set(calls) - {("mean", 1)} == expected
        assert len(calls) == len(set(calls)) or mode != "plain"


def test_paper_and_hp_differ_in_fprop_by_one_row() -> None:
    x, w, _ = operands(torch.float32)
    q = Quantisers(activation=fp4(), weight=fp4(tile_rows=16), mean=fp4())
    difference = fprop(x, w, q, "paper") - fprop(x, w, q, "hp")
    assert difference.std(0).max() < 1e-12
    assert difference.abs().max() > 0.1


def test_a_mean_in_the_operands_makes_the_tokens_indistinct_and_taking_it_out_does_not() -> None:
    x, w, _ = operands(torch.float32)
    q = Quantisers(activation=fp4(), weight=fp4(tile_rows=16), mean=fp4())
    exact = fprop(x, w, Quantisers(), "plain")
    errors = {mode: (fprop(x, w, q, mode) - exact) for mode in MODES}
    signal = (exact - exact.mean(0)).norm()
    centred = {mode: float((error - error.mean(0)).norm() / signal) for mode, error in errors.items()}
    assert centred["plain"] > 0.5
    assert max(centred["hp"], centred["paper"]) < 0.2
    assert centred["hp"] < centred["requant"] < centred["plain"]


def test_hadamard_values_come_back_from_the_transform_and_leave_the_product_as_it_is() -> None:
    x, _, d = operands(torch.float32)

    def transformed(t: Tensor) -> Tensor:
        return formats.dequantize(formats.quantize(t, axis=0, hadamard=True), "nvfp4", len(t), 0).double()

    q = Quantisers(activation=fp4(hadamard=True), gradient=fp4(hadamard=True))
    dw, expected = wgrad(d, x, q, "plain"), transformed(d).T @ transformed(x)
    assert (dw - expected).norm() / expected.norm() < 1e-6
    assert (hadamard(fp4(hadamard=True)(x, 0), 0) - transformed(x)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="24"):
        fp4(hadamard=True)(torch.ones(24, 16), 0)


def test_a_seed_rounds_stochastically_and_always_alike() -> None:
    x, _, _ = operands(torch.float32)
    assert torch.equal(fp4(seed=3)(x, 0), fp4(seed=3)(x, 0))
    assert not torch.equal(fp4(seed=3)(x, 0), fp4(seed=4)(x, 0))
    assert not torch.equal(fp4(seed=3)(x, 0), fp4(seed=3, stream=2)(x, 0))
    assert not torch.equal(fp4(seed=3)(x, 0), fp4()(x, 0))
