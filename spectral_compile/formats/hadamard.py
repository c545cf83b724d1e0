"""The random Hadamard transform of size 16 along the contracted axis of both operands of a product.

T = diag(signs) H / 4 is orthogonal, so (T A)'(T B) = A'B; but an outlier of A is spread over 16 values before they are
rounded. The signs are those of NVIDIA's recipe (Pretraining LLMs with NVFP4, 2025), fixed for all runs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 16
SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def hadamard(x: Tensor, axis: int = -1) -> Tensor:
    """x, padded with zeros to a multiple of 16 along `axis`, times diag(signs) H16 / 4 in groups of 16; fp32.

    H16[i, j] = (-1)**popcount(i & j). Computed as four rounds of sums and differences, neighbours first: an order that
    every device can follow, so results are equal to the bit.
    """
    x = x.to(torch.float32).movedim(axis, -1)
    groups = F.pad(x, (0, -x.shape[-1] % SIZE)).unflatten(-1, (-1, SIZE)) * _signs(x)
    return _butterflies(groups).flatten(-2).movedim(-1, axis)


def inverse_hadamard(x: Tensor, axis: int = -1) -> Tensor:
    """What `hadamard` was given, zero padding included, to fp32's rounding."""
    groups = x.to(torch.float32).movedim(axis, -1).unflatten(-1, (-1, SIZE))
    return (_butterflies(groups) * _signs(x)).flatten(-2).movedim(-1, axis)


def _butterflies(groups: Tensor) -> Tensor:
    """groups [..., 16] @ H16 / 4."""
    for distance in (1, 2, 4, 8):
        pairs = groups.unflatten(-1, (-1, 2, distance))
        a, b = pairs.unbind(-2)
        groups = torch.stack((a + b, a - b), -2).flatten(-3)
    return groups * 0.25


def _signs(like: Tensor) -> Tensor:
    return torch.tensor(SIGNS, dtype=torch.float32, device=like.device)
