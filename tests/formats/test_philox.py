"""Philox 4x32-10 against Random123's known answers and against Python integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.formats.philox import philox, random_bytes
from tests import scalar_nvfp4 as scalar

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


def test_each_byte_value_is_as_frequent_as_chance_allows() -> None:
    counts = random_bytes(torch.tensor(7), 3, 1 << 14).flatten().bincount(minlength=256).to(torch.float64)
    expected = (1 << 18) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert len(counts) == 256
    assert 160 < chi_squared < 370  # 255 degrees of freedom: 255 +- 23; a fixed seed, so this never flickers
