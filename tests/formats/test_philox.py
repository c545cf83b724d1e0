"""Philox 4x32-10 against Random123's known answers and against Python integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.formats.philox import philox, random_bytes
from tests.scalar import philox as scalar

ONES = 0xFFFFFFFF
KNOWN = {  # counter, key, words: Random123's kat_vectors
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
WORD = st.integers(0, ONES)


def _philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    words = philox(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    return tuple(int(w) for w in words)


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    counter, key, words = KNOWN[name]
    assert _philox(counter, key) == words
    assert scalar.philox(counter, key) == words


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_any_counter_and_key_give_what_integers_give(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert _philox(counter, key) == scalar.philox(counter, key)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, ONES), st.integers(0, 5))
def test_random_bytes_are_the_words_of_seed_stream_and_group_low_byte_first(
    seed: int, stream: int, groups: int
) -> None:
    got = random_bytes(torch.tensor(seed), stream, groups)
    assert got.shape == (groups, 16)
    assert [bytes(row) for row in got.tolist()] == [scalar.random_group(seed, stream, g) for g in range(groups)]


def test_both_halves_of_the_seed_and_the_stream_change_every_group() -> None:
    base = random_bytes(torch.tensor(1), 0, 100)
    for seed, stream in ((2, 0), (1 + (1 << 32), 0), (1, 1)):
        other = random_bytes(torch.tensor(seed), stream, 100)
        assert (other != base).any(1).all()


# Fixed seeds, so nothing below flickers; a chi-square of n degrees of freedom is n +- sqrt(2 n).


@pytest.mark.parametrize("seed", [7, -1, 2**40])
def test_each_byte_value_is_as_frequent_as_chance_allows_at_each_place_of_a_group(seed: int) -> None:
    drawn = random_bytes(torch.tensor(seed), 3, 1 << 14)
    assert 160 < _chi_squared(drawn.flatten(), 256) < 370  # 255 +- 23
    for place in range(16):
        assert 140 < _chi_squared(drawn[:, place], 256) < 390


def test_neighbours_in_a_group_and_in_streams_are_independent() -> None:
    """High nibbles of two bytes make 256 pairs."""
    one, two = (random_bytes(torch.tensor(7), stream, 1 << 14) >> 4 for stream in (3, 4))
    next_seed = random_bytes(torch.tensor(8), 3, 1 << 14) >> 4
    for a, b in ((one[:, :-1], one[:, 1:]), (one[:-1], one[1:]), (one, two), (one, next_seed)):
        assert 160 < _chi_squared((a * 16 + b).flatten(), 256) < 370


def _chi_squared(drawn: torch.Tensor, values: int) -> float:
    """Of integers drawn uniformly below `values`."""
    counts = drawn.bincount(minlength=values).to(torch.float64)
    assert len(counts) == values
    expected = drawn.numel() / values
    return ((counts - expected) ** 2 / expected).sum().item()
