"""Philox 4x32-10 in Python integers (Salmon et al., SC 2011), and the random bytes that the contract takes from it."""

from collections.abc import Sequence

GROUP = 16


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Philox 4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def random_group(seed: int, stream: int, group: int) -> bytes:
    """The 16 random bytes of a group of neighbouring elements, counted in the order in which codes are stored."""
    key = (seed % 2**32, (seed % 2**64) >> 32)
    return b"".join(w.to_bytes(4, "little") for w in philox((group % 2**32, group >> 32, stream, 0), key))
