"""Philox 4x32-10, the counter-based generator behind stochastic rounding (Salmon et al., SC 2011).

Counter in, random bits out: no state, so the same seed gives the same bits on every device and in any order of
evaluation. One call yields 16 bytes: the random bytes of one group of 16 neighbouring elements.
"""

import torch
from torch import Tensor

GROUP = 16  # bytes a counter
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def random_bytes(seed: Tensor, stream: int, groups: int) -> Tensor:
    """Random bytes [groups, 16], int64 values 0..255.

    seed: int64 tensor of one element, the Philox key. stream: names the GEMM and operand, below 2**32; group g of
    the stream is the counter (g low, g high, stream, 0). Byte j of a group is byte j % 4 of word j // 4, low first.
    """
    group = torch.arange(groups, dtype=torch.int64, device=seed.device)
    key = seed.reshape(())
    words = philox(
        (group & _MASK, group >> 32, torch.full_like(group, stream & _MASK), torch.zeros_like(group)),
        (key & _MASK, (key >> 32) & _MASK),
    )
    shifts = torch.arange(0, 32, 8, device=seed.device)
    return ((torch.stack(words, dim=1)[:, :, None] >> shifts) & 0xFF).reshape(groups, 16)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four output words of Philox 4x32-10; 32-bit words are carried in int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low0, high0 = _multiply(c0, _MULTIPLIER[0])
        low1, high1 = _multiply(c2, _MULTIPLIER[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Low and high words of a 32 x 32 bit product; int64 wraps, which leaves the bits right."""
    product = a * b
    return product & _MASK, (product >> 32) & _MASK
