"""Tables of what one rounding costs, for each format, scale rule and way to round."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import numerics_inputs as inputs
from benchmarks.numerics_metrics import RoundTrip, Setting, round_trip, settings, sqnr, token_centred
from benchmarks.numerics_tables import Table

ROWS, COLS = 256, 1024
GAIN = inputs.octave(ROWS, band=32)  # as many rows as a square block has
MEAN = 10.0  # the mean over the deviation, of the input with a strong mean


def tables() -> Iterator[Table]:
    x = {
        "Gaussian": inputs.gaussian(ROWS, COLS),
        "t3": inputs.student_t(ROWS, COLS),
        "outliers": inputs.with_outliers(ROWS, COLS),
        "mean 10": inputs.with_mean(ROWS, COLS, MEAN),
    }
    trips = {setting: {name: round_trip(tensor, setting, GAIN) for name, tensor in x.items()} for setting in settings()}
    ratios = {setting: _ratios(of, setting) for setting, of in trips.items()}
    losses = {setting: _losses(of) for setting, of in trips.items() if not setting.stochastic}
    shrinkages = {setting: _shrinkages(of) for setting, of in trips.items()}
    yield _table("sqnr", "Signal to quantisation noise, dB", ratios)
    yield _table("losses", "Values clipped and rounded to zero, %", losses)
    yield _table("shrinkage", "Shrinkage of all values and of each block's largest, %", shrinkages)


def _table(name: str, title: str, rows: dict[Setting, dict[str, str]]) -> Table:
    columns = next(iter(rows.values())).keys()
    cells = [[setting.label, *row.values()] for setting, row in rows.items()]
    return Table(name, f"{title}; [{ROWS}, {COLS}]", ("quantiser", *columns), cells)


def _ratios(trips: dict[str, RoundTrip], setting: Setting) -> dict[str, str]:
    """H: with the Hadamard transform. The rest: of the input with outlier channels, the other channels. Centred: of the
    input with a strong mean, both the values and their error less their means over tokens.
    """
    square, spread = replace(setting, square=True), replace(setting, hadamard=True)
    gaussian, t3, outliers, mean = (trips[name] for name in ("Gaussian", "t3", "outliers", "mean 10"))
    t3_spread, outliers_spread = round_trip(t3.x, spread, GAIN), round_trip(outliers.x, spread, GAIN)
    rest = ~inputs.outlier_channels(COLS)
    ratios = {
        "Gaussian": gaussian.sqnr(),
        "square blocks": round_trip(gaussian.x, square, GAIN).sqnr(),
        "t3": t3.sqnr(),
        "t3, H": t3_spread.sqnr(),
        "outliers": outliers.sqnr(),
        "outliers, H": outliers_spread.sqnr(),
        "the rest": sqnr(outliers.x[:, rest], outliers.back[:, rest]),
        "the rest, H": sqnr(outliers.x[:, rest], outliers_spread.back[:, rest]),
        "mean 10": mean.sqnr(),
        "centred": sqnr(token_centred(mean.x), token_centred(mean.back)),
    }
    return {name: f"{ratio:.1f}" for name, ratio in ratios.items()}


def _losses(trips: dict[str, RoundTrip]) -> dict[str, str]:
    clipped = {f"clipped: {name}": trip.clipped() for name, trip in trips.items()}
    zeroed = {f"zeroed: {name}": trip.zeroed() for name, trip in trips.items()}
    return {name: f"{100 * share:.1f}" for name, share in (clipped | zeroed).items()}


def _shrinkages(trips: dict[str, RoundTrip]) -> dict[str, str]:
    values = {f"all: {name}": trip.shrinkage() for name, trip in trips.items()}
    largest = {f"largest: {name}": trip.largest_shrinkage() for name, trip in trips.items()}
    return {name: f"{100 * share:+.2f}" for name, share in (values | largest).items()}
