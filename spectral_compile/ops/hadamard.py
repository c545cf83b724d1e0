"""spectral::hadamard: an operand transformed along the axis that its product contracts."""

import torch
from torch import Tensor

from spectral_compile.formats.hadamard import SIZE
from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.ops.library import declare


def hadamard(x: Tensor, axis: int) -> Tensor:
    """x [M, K], padded along `axis` to a multiple of 16 and transformed there: contiguous fp32.

    A product of two operands that are both transformed along the contracted axis is that of the operands.
    """
    return hadamard_transform(x, axis).clone(memory_format=torch.contiguous_format)  # strides as promised, of 1 x 1 too


def _fake(x: Tensor, axis: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = (shape[axis] + SIZE - 1) // SIZE * SIZE
    return x.new_empty(shape, dtype=torch.float32)


declare("hadamard(Tensor x, int axis) -> Tensor", reference=hadamard, fake=_fake)
