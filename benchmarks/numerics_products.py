"""Tables of the errors of the three GEMMs, with and without the token mean in their operands; NVFP4."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from benchmarks import numerics_inputs as inputs
from benchmarks.mean_modes import MODES, Mode, Quantisers, dgrad, fp4, fprop, wgrad
from benchmarks.numerics_metrics import relative_error, token_centred
from benchmarks.numerics_tables import Table

TOKENS, IN, OUT = 1024, 512, 256
RATIOS = (0.0, 1.0, 3.0, 10.0)
GRADIENT_RATIO = 0.05


@dataclass(frozen=True)
class Layer:
    """x [tokens, in], w [out, in] and d [tokens, out]: deviation 1, but for w's, which is in ** -0.5."""

    x: Tensor
    w: Tensor
    d: Tensor

    @cached_property
    def y(self) -> Tensor:
        """[tokens, out], exact but for fp64's rounding."""
        return fprop(self.x, self.w, Quantisers(), "plain")

    @cached_property
    def dx(self) -> Tensor:
        """[tokens, in]"""
        return dgrad(self.d, self.w, Quantisers(), "plain")

    @cached_property
    def dw(self) -> Tensor:
        """[out, in]"""
        return wgrad(self.d, self.x, Quantisers(), "plain")

    @cached_property
    def dw_centred(self) -> Tensor:
        """DR' XR [out, in]: the part of dw that does not come from the means."""
        return token_centred(self.d).T @ token_centred(self.x)


def layer(tokens: int, features: int, out: int, ratio: float, gradient_ratio: float, seed: int = 0) -> Layer:
    """Means over deviations: `ratio` for x, `gradient_ratio` for d."""
    x = inputs.with_mean(tokens, features, ratio, seed=10 * seed)
    w = inputs.gaussian(out, features, seed=10 * seed + 2) / features**0.5
    return Layer(x, w, inputs.with_mean(tokens, out, gradient_ratio, seed=10 * seed + 3))


def recipe(hadamard: bool = False, seed: int = 1) -> Quantisers:
    """The default recipe's: 16 x 16 blocks for weights, gradients stochastic. `hadamard` is for wgrad."""
    return Quantisers(
        activation=fp4(hadamard=hadamard),
        weight=fp4(tile_rows=16),
        gradient=fp4(hadamard=hadamard, seed=seed),
        mean=fp4(),
    )


def products_table(gradient_ratio: float = GRADIENT_RATIO) -> Table:
    """Mean over deviation s for x, s * gradient_ratio for d."""
    rows = []
    for ratio in RATIOS:
        case = layer(TOKENS, IN, OUT, ratio, ratio * gradient_ratio)
        for mode in MODES:
            errors = [*fprop_errors(case, recipe(), mode), *dgrad_errors(case, recipe(), mode)]
            for hadamard in (False, True):
                errors += wgrad_errors(case, recipe(hadamard), mode)
            rows.append(
                [f"{ratio:g}", mode, *(f"{error:.3f}" if error >= 0.01 else f"{error:.4f}" for error in errors)]
            )
    columns = [f"{gemm}{kind}" for gemm in ("fprop", "dgrad", "wgrad", "wgrad, H") for kind in ("", ", centred")]
    title = f"Relative errors, tokens {TOKENS}, in {IN}, out {OUT}; gradients' mean/deviation {gradient_ratio:g} s"
    return Table("products", title, ("s", "mode", *columns), rows, labels=2)


def fprop_errors(case: Layer, q: Quantisers, mode: Mode) -> tuple[float, float]:
    """Total and token-centred."""
    return _total_and_centred(fprop(case.x, case.w, q, mode), case.y)


def dgrad_errors(case: Layer, q: Quantisers, mode: Mode) -> tuple[float, float]:
    """Total and token-centred."""
    return _total_and_centred(dgrad(case.d, case.w, q, mode), case.dx)


def wgrad_errors(case: Layer, q: Quantisers, mode: Mode) -> tuple[float, float]:
    """Total, and centred: |error| / |DR' XR|, against the part of the gradient that does not come from the means."""
    error = wgrad(case.d, case.x, q, mode) - case.dw
    return float(error.norm() / case.dw.norm()), float(error.norm() / case.dw_centred.norm())


def _total_and_centred(value: Tensor, reference: Tensor) -> tuple[float, float]:
    return relative_error(value, reference), relative_error(token_centred(value), token_centred(reference))
