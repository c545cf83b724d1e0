"""spectral::dequantize: the values that codes and scales stand for."""

import torch
from torch import Tensor

from spectral_compile.formats.nvfp4 import Quantized, block_values, dequantize_nvfp4
from spectral_compile.ops.library import declare


def dequantize(codes: Tensor, scales: Tensor, amax: Tensor, format: str, rows: int, cols: int) -> Tensor:
    """fp32 [rows, cols] of what `quantize` stored (its block axis last, so transposed for axis 0), padding cut off."""
    if format == "identity":
        return codes.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return dequantize_nvfp4(Quantized(codes, scales, amax), rows, cols).contiguous()


def carried(codes: Tensor, scales: Tensor, amax: Tensor, format: str, rows: int, cols: int) -> Tensor:
    """As `dequantize`, less the tensor scale: what a carrier multiplies, exact in bf16."""
    if format == "identity":
        return codes
    return block_values(Quantized(codes, scales, amax), rows, cols)


def _fake(codes: Tensor, scales: Tensor, amax: Tensor, format: str, rows: int, cols: int) -> Tensor:
    return codes.new_empty((rows, cols), dtype=torch.float32)


declare(
    "dequantize(Tensor codes, Tensor scales, Tensor amax, str format, SymInt rows, SymInt cols) -> Tensor",
    reference=dequantize,
    fake=_fake,
)
