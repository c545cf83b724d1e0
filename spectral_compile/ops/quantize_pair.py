"""spectral::quantize_pair: a matrix quantised along rows and down columns at once, which one read of it can do."""

from torch import Tensor

from spectral_compile.ops import quantize as quantize_op
from spectral_compile.ops.library import declare

_Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def quantize_pair(
    x: Tensor,
    row_mean: Tensor | None,
    row_rows: Tensor | None,
    row_seed: Tensor | None,
    row_format: str,
    row_scale: str,
    row_tile_rows: int,
    row_hadamard: bool,
    row_stream: int,
    row_amax: Tensor | None,
    col_mean: Tensor | None,
    col_rows: Tensor | None,
    col_seed: Tensor | None,
    col_format: str,
    col_scale: str,
    col_tile_rows: int,
    col_hadamard: bool,
    col_stream: int,
    col_amax: Tensor | None,
) -> _Results:
    """What `quantize` makes of x [M, K] with axis 1 and the arguments row_*; with axis 0 and col_*."""
    return (
        *quantize_op.quantize(
            *(x, row_mean, row_rows, row_seed, row_format, row_scale, 1, row_tile_rows, row_hadamard, row_stream),
            amax=row_amax,
        ),
        *quantize_op.quantize(
            *(x, col_mean, col_rows, col_seed, col_format, col_scale, 0, col_tile_rows, col_hadamard, col_stream),
            amax=col_amax,
        ),
    )


def _fake(
    x: Tensor,
    row_mean: Tensor | None,
    row_rows: Tensor | None,
    row_seed: Tensor | None,
    row_format: str,
    row_scale: str,
    row_tile_rows: int,
    row_hadamard: bool,
    row_stream: int,
    row_amax: Tensor | None,
    col_mean: Tensor | None,
    col_rows: Tensor | None,
    col_seed: Tensor | None,
    col_format: str,
    col_scale: str,
    col_tile_rows: int,
    col_hadamard: bool,
    col_stream: int,
    col_amax: Tensor | None,
) -> _Results:
    return (
        *quantize_op._fake(
            *(x, row_mean, row_rows, row_seed, row_format, row_scale, 1, row_tile_rows, row_hadamard, row_stream)
        ),
        *quantize_op._fake(
            *(x, col_mean, col_rows, col_seed, col_format, col_scale, 0, col_tile_rows, col_hadamard, col_stream)
        ),
    )


_SIDE = "Tensor? {0}_mean, Tensor? {0}_rows, Tensor? {0}_seed, str {0}_format, str {0}_scale, int {0}_tile_rows,"
_SIDE += " bool {0}_hadamard, int {0}_stream, Tensor? {0}_amax"
_RESULTS = "Tensor {0}_codes, Tensor {0}_scales, Tensor {0}_tensor_scale"

declare(
    f"quantize_pair(Tensor x, {_SIDE.format('row')}, {_SIDE.format('col')})"
    f" -> ({_RESULTS.format('row')}, {_RESULTS.format('col')})",
    reference=quantize_pair,
    fake=_fake,
)
