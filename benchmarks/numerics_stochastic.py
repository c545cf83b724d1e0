"""A table of stochastic rounding over many draws: what stays wrong on average (bias) and what averages out (noise)."""

import torch
from torch import Tensor

from benchmarks import numerics_inputs as inputs
from benchmarks.mean_modes import fp4
from benchmarks.numerics_metrics import Setting, settings
from benchmarks.numerics_tables import Table

DRAWS = 64
TOKENS, OUT, IN = 128, 512, 256


def draws_table(draws: int = DRAWS) -> Table:
    """dX = D W, of a Gaussian gradient that is rounded and a weight that is not."""
    d = inputs.gaussian(TOKENS, OUT, seed=4).double()
    gain = inputs.octave(TOKENS)
    w = inputs.gaussian(OUT, IN, seed=5).double()
    rows = []
    for setting in settings():
        shrinkage, bias, noise = product_over_draws(d, w, setting, draws if setting.stochastic else 1, gain)
        total = (bias**2 + noise**2) ** 0.5
        rows.append([setting.label, f"{100 * shrinkage:+.2f}", *(f"{value:.4f}" for value in (bias, noise, total))])
    title = f"D W with D [{TOKENS}, {OUT}] Gaussian and rounded, W [{OUT}, {IN}] exact; {draws} draws"
    return Table("draws", title, ("quantiser of D", "shrinkage, %", "bias", "noise", "error of one draw"), rows)


def product_over_draws(
    d: Tensor, w: Tensor, setting: Setting, draws: int, gain: Tensor | float = 1.0
) -> tuple[float, float, float]:
    """Shrinkage, bias and noise of P = Q(d) w over `draws` draws, relative to the exact product; `gain` as elsewhere.

    With m the mean of P over the draws: shrinkage = <m, P_exact> / |P_exact|**2 - 1; noise = the root of the mean of
    |P - m|**2 (with draws - 1), over |P_exact|; bias = |m - P_exact| / |P_exact|, from the square of which the share
    that chance leaves in the mean of so many draws, noise**2 / draws, is taken off.
    """
    exact = d.double() @ w.double()
    total, squares = torch.zeros_like(exact), 0.0
    gained = d.float() * gain
    for draw in range(draws):
        # Sums of differences from the exact product: no digits are lost.
        quantiser = fp4(setting.format, setting.scale, seed=draw if setting.stochastic else None)
        error = (quantiser(gained, 1) / gain).double() @ w.double() - exact
        total += error
        squares += float(error.square().sum())
    mean = total / draws
    energy, mean_energy = float(exact.square().sum()), float(mean.square().sum())
    variance = (squares - draws * mean_energy) / (draws - 1) if draws > 1 else 0.0
    bias = max(0.0, mean_energy - variance / draws)
    return float((mean * exact).sum()) / energy, (bias / energy) ** 0.5, (variance / energy) ** 0.5
