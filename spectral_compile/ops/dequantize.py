"""spectral::dequantize: the values that codes and scales stand for."""

import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats.quantized import Quantized, block_values
from spectral_compile.ops.library import declare


def dequantize(codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, rows: int, cols: int) -> Tensor:
    """fp32 [rows, cols] of what `quantize` stored (its block axis last, so transposed for axis 0), padding cut off."""
    if format == "identity":
        return codes[:, :cols].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    values = formats.dequantize(Quantized(codes, scales, tensor_scale), format, cols)
    return values.clone(memory_format=torch.contiguous_format)  # strides as promised, of one row too


def carried(codes: Tensor, scales: Tensor, format: str, cols: int) -> Tensor:
    """As `dequantize`, less the tensor scale: what a carrier multiplies, exact in bf16."""
    if format == "identity":
        return codes[:, :cols]
    return block_values(Quantized(codes, scales, scales), format)[:, :cols]


def _fake(codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, rows: int, cols: int) -> Tensor:
    return codes.new_empty((rows, cols), dtype=torch.float32)


declare(
    "dequantize(Tensor codes, Tensor scales, Tensor tensor_scale, str format, SymInt rows, SymInt cols) -> Tensor",
    reference=dequantize,
    fake=_fake,
)
