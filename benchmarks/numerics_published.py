"""The figures to be expected of mean removal, each with a setting that reproduces it."""

from collections.abc import Iterator
from statistics import mean, stdev

from benchmarks.mean_modes import Quantisers, fp4, fprop
from benchmarks.numerics_metrics import relative_error
from benchmarks.numerics_products import Layer, fprop_errors, layer, wgrad_errors
from benchmarks.numerics_tables import Table

TOKENS, IN, OUT = 512, 256, 256
RATIO = 10.0
SEEDS = 6
FEW_ROWS = (1, 2, 4, 8, 16, 32, 256)

# Figure, rounding, expected value; in the order of `_figures`. Blocks are 1 x 16, of weights as well.
FIGURES = (
    ("fprop: plain", "nearest", ".133"),
    ("fprop: paper", "nearest", ".127"),
    ("fprop: mean in high precision, times Q(W)", "nearest", ".097"),
    ("fprop: hp", "nearest", ".013"),
    ("fprop, token-centred: plain", "nearest", "about 1"),
    ("fprop, token-centred: hp", "nearest", ".14"),
    ("wgrad: plain", "X and D stochastic", ".207"),
    ("wgrad: paper", "X, D and their means stochastic", ".240"),
    ("wgrad: hp", "X and D stochastic", ".019"),
    ("wgrad: plain", "D stochastic", ""),
    ("wgrad: paper", "D stochastic", ""),
    ("wgrad: hp", "D stochastic", ""),
)


def published_table() -> Table:
    """Mean over deviation 10 for x, 0 for d."""
    runs = [list(_figures(layer(TOKENS, IN, OUT, RATIO, 0.0, 1000 + seed), seed)) for seed in range(SEEDS)]
    rows = [[*figure, _spread(values)] for figure, values in zip(FIGURES, zip(*runs, strict=True), strict=True)]
    title = f"Expected figures, s = {RATIO:g}; tokens {TOKENS}, in {IN}, out {OUT}; mean ± deviation of {SEEDS} seeds"
    return Table("published", title, ("figure", "rounding", "expected", "measured"), rows, labels=2)


def _figures(case: Layer, seed: int) -> Iterator[float]:
    nearest = Quantisers(activation=fp4(), weight=fp4(), mean=fp4())
    total, centred = zip(*(fprop_errors(case, nearest, mode) for mode in ("plain", "hp")), strict=True)
    rounded_w = fp4()(case.w, 1)
    yield total[0]
    yield fprop_errors(case, nearest, "paper")[0]
    yield relative_error(fprop(case.x, rounded_w, Quantisers(activation=fp4()), "hp"), case.y)
    yield total[1]
    yield from centred
    gradient = fp4(seed=seed)
    everything = Quantisers(activation=fp4(seed=seed, stream=2), gradient=gradient, mean=fp4(seed=seed, stream=4))
    for q in (everything, Quantisers(activation=fp4(), gradient=gradient, mean=fp4())):
        for mode in ("plain", "paper", "hp"):
            yield wgrad_errors(case, q, mode)[0]


def few_rows_table() -> Table:
    """The error of fprop in mode hp, s = 1, by the number of rows of which the mean is taken."""
    expected = {1: ".000", 2: ".076", 16: ".102"}
    rows = []
    for tokens in FEW_ROWS:
        cases = [layer(tokens, IN, OUT, 1.0, 0.0, seed=2000 + seed) for seed in range(SEEDS)]
        cells = [
            _spread([fprop_errors(case, Quantisers(activation=fp4(), weight=weight), "hp")[0] for case in cases])
            for weight in (fp4(), fp4(tile_rows=16))
        ]
        rows.append([str(tokens), expected.get(tokens, ""), *cells])
    columns = ("rows", "expected", "weight in 1 x 16 blocks", "weight in 16 x 16 blocks")
    title = f"Error of fprop, mode hp, s = 1, in {IN}, out {OUT}; mean ± deviation of {SEEDS} seeds"
    return Table("few-rows", title, columns, rows)


def _spread(values: tuple[float, ...] | list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}"
