"""spectral::token_mean and its kin on a GPU: means to the rounding of fp32 sums, all else as the reference's."""

import torch
from torch import Tensor

from spectral_compile.lowering.triton import launch as how
from spectral_compile.lowering.triton.device.amax import finish_amax
from spectral_compile.lowering.triton.device.means import count_rows, finish_means, sum_chunks
from spectral_compile.lowering.triton.launch import launch, matrix
from spectral_compile.ops import token_mean as reference
from spectral_compile.ops.library import copy_into

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def token_mean(x: Tensor, min_rows: int, *, out: tuple[Tensor]) -> None:
    """spectral::token_mean: [features], fp32."""
    if not _has_kernel(x):
        return copy_into(out, reference.token_mean(x, min_rows))
    return _means(x, min_rows, mean=out[0])


def token_mean_nonzero(x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """spectral::token_mean_nonzero: mean [features], rows [tokens], total and common mean [features]."""
    if not _has_kernel(x):
        return copy_into(out, reference.token_mean_nonzero(x, min_rows))
    return _means(x, min_rows, *out)


def token_mean_amax(x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor]) -> None:
    """spectral::token_mean_amax: mean [features] and amax [], from one read of x."""
    if not _has_kernel(x):
        return copy_into(out, reference.token_mean_amax(x, min_rows))
    return _means(x, min_rows, mean=out[0], amax=(out[1],))


def token_mean_nonzero_amax(
    x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
) -> None:
    """spectral::token_mean_nonzero_amax: as token_mean_nonzero, and both amax [], from one read of x."""
    if not _has_kernel(x):
        return copy_into(out, reference.token_mean_nonzero_amax(x, min_rows))
    return _means(x, min_rows, *out[:4], amax=out[4:])


def _has_kernel(x: Tensor) -> bool:
    return x.dtype in _FLOATS and x.numel() > 0


def _means(
    x: Tensor,
    min_rows: int,
    mean: Tensor,
    counting: Tensor | None = None,
    total: Tensor | None = None,
    common: Tensor | None = None,
    amax: tuple[Tensor, ...] = (),
) -> None:
    """Fill what is given: of x [tokens, features]. amax: of x less the mean in rows that count, and less common."""
    rows, cols = x.shape
    tile = how.MEAN
    strips = -(-cols // (tile.groups * 16))
    chunks = -(-rows // (tile.rows * how.MEAN_TILES))

    def of_chunks(asked: bool, dtype: torch.dtype) -> Tensor | None:
        return x.new_empty((chunks, cols), dtype=dtype) if asked else None

    sums = of_chunks(True, torch.float32)
    least, largest = of_chunks(bool(amax), torch.float32), of_chunks(bool(amax), torch.float32)
    nonzeros = of_chunks(counting is not None, torch.int32)
    has_nonzero = None if counting is None else x.new_empty((strips, rows), dtype=torch.int8)
    launch(
        *(sum_chunks, strips * chunks, tile.warps, *matrix(x), sums, least, largest, nonzeros, has_nonzero),
        *(how.MEAN_TILES, tile.rows, tile.groups * 16),
    )

    counts, count_programs = None, 0
    if counting is not None:
        count_programs = -(-rows // how.COUNT_ROWS)
        counts = x.new_empty(count_programs, dtype=torch.int32)
        launch(count_rows, count_programs, 4, has_nonzero, rows, strips, counting, counts, how.COUNT_ROWS)

    programs = -(-cols // how.FINISH)
    partials = x.new_empty((len(amax), programs), dtype=torch.int32) if amax else None
    launch(
        *(finish_means, programs, 4, sums, least, largest, nonzeros, chunks, counts, count_programs, rows, cols),
        *(min_rows, mean, total, common, partials, how.FINISH, how.SEARCH),
    )
    if amax:
        found = x.new_empty(len(amax), dtype=torch.float32)
        launch(finish_amax, len(amax), 4, partials, programs, found, how.SEARCH)
        for to, of in zip(amax, found.unbind(), strict=True):
            to.copy_(of)
