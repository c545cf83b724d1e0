"""Operands for the operators under test: spectral::quantize's arguments by name, and all its combinations."""

from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.ops.quantize import quantize
from tests.fake_kernels import equal_bits

# Format, scale rule, tile_rows: all that there is; "identity" looks at neither of the latter.
QUANTISERS = [
    (format, rule, tile_rows)
    for format, kind in FORMATS.items()
    for rule in kind.scales
    for tile_rows in (1, kind.block)
] + [("identity", "amax", 1)]
EVERY_FORMAT = [*FORMATS, "identity"]


def arguments(
    x: Tensor,
    format: str = "nvfp4",
    scale: str | None = None,
    tile_rows: int = 1,
    *,
    axis: int = 1,
    mean: Tensor | None = None,
    rows: Tensor | None = None,
    seed: Tensor | None = None,
    hadamard: bool = False,
    stream: int = 0,
) -> tuple[object, ...]:
    """In the operator's order; the scale rule is the format's first one by default."""
    if scale is None:
        scale = FORMATS[format].scales[0] if format in FORMATS else "amax"
    return (x, mean, rows, seed, format, scale, axis, tile_rows, hadamard, stream)


def quantized(x: Tensor, *choices: object, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """spectral::quantize's reference on `arguments`."""
    return quantize(*arguments(x, *choices, **options))  # type: ignore[arg-type]


def square(format: str) -> int:
    """tile_rows of a square block; identity has none."""
    return FORMATS[format].block if format in FORMATS else 1


def all_equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """To the bit, NaN and -0 included, float8 too."""
    return all(equal_bits(a, b) for a, b in zip(got, expected, strict=True))
