"""spectral::dequantize, carry and center on a GPU: equal to the references."""

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import launch as how
from spectral_compile.lowering.triton.device.values import centered, values_of_codes
from spectral_compile.lowering.triton.launch import fp32, launch, matrix
from spectral_compile.ops import center as center_op
from spectral_compile.ops import dequantize as dequantize_op
from spectral_compile.ops import round as round_op
from spectral_compile.ops.library import copy_into

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def dequantize(
    codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, rows: int, cols: int, *, out: tuple[Tensor]
) -> None:
    """spectral::dequantize: fp32 [rows, cols]."""
    if format not in FORMATS:
        return copy_into(out, dequantize_op.dequantize(codes, scales, tensor_scale, format, rows, cols))
    has_tensor_scale = FORMATS[format].tensor_scale is not None
    return _fill(codes, scales, tensor_scale if has_tensor_scale else None, format, out[0])


def carry(
    codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype, *, out: tuple[Tensor]
) -> None:
    """spectral::carry: [rows, cols] in dtype, bf16 or fp32."""
    if format not in FORMATS:
        return copy_into(out, round_op.carry(codes, scales, format, rows, cols, dtype))
    return _fill(codes, scales, None, format, out[0])


def center(x: Tensor, mean: Tensor, rows: Tensor | None, *, out: tuple[Tensor]) -> None:
    """spectral::center: fp32, as x lies."""
    if x.dtype not in _FLOATS or not x.numel():
        return copy_into(out, center_op.center(x, mean, rows))
    tile = how.CENTER
    launch(
        *(centered, tile.count(x), tile.warps, *matrix(x), fp32(mean), fp32(rows), out[0]),
        *(tile.rows, tile.groups),
    )
    return None


def _fill(codes: Tensor, scales: Tensor, tensor_scale: Tensor | None, format: str, values: Tensor) -> None:
    if not values.numel():
        return
    codes, scales = codes.contiguous(), scales.contiguous()
    tile_rows = 1 if scales.shape[0] == codes.shape[0] else FORMATS[format].block
    tile = how.VALUES
    launch(
        *(values_of_codes, tile.count(values), tile.warps, codes, scales.view(torch.uint8), tensor_scale, values),
        *(*values.shape, scales.shape[1], format, tile_rows, tile.rows, tile.groups * 16),
    )
