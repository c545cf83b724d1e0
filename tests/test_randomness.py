"""The seeds of stochastic rounding."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from spectral_compile.randomness import manual_seed, next_seed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    manual_seed(None)


def draw(count: int = 5) -> list[int]:
    return [int(next_seed(CPU)) for _ in range(count)]


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)


def test_a_seed_is_one_int64_on_the_device() -> None:
    seed = next_seed(torch.device("meta"))
    assert (seed.shape, seed.dtype, seed.device.type) == ((), torch.int64, "meta")


def test_manual_seed_restarts_the_sequence() -> None:
    manual_seed(3)
    first = draw()
    assert draw() != first
    manual_seed(3)
    assert draw() == first
    manual_seed(4)
    assert not set(draw()) & set(first)


def test_every_call_gives_another_seed_and_both_halves_change() -> None:
    manual_seed(0)
    seeds = draw(1000)
    for half in ([s & 0xFFFFFFFF for s in seeds], [s >> 32 for s in seeds]):
        assert len(set(half)) > 990  # 32 bits may meet by chance, seldom
    assert 300 < sum(s < 0 for s in seeds) < 700  # all 64 bits are used


def test_ranks_draw_unrelated_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    for rank in range(4):
        as_rank(monkeypatch, rank)
        manual_seed(0)
        drawn += draw(100)
    assert len(set(drawn)) == 400  # neither rank by rank nor shifted by calls
    as_rank(monkeypatch, 2)
    manual_seed(0)
    assert draw(100) == drawn[200:300]


def test_rank_0_draws_what_a_single_process_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    manual_seed(0)
    single = draw()
    as_rank(monkeypatch, 0)
    manual_seed(0)
    assert draw() == single


def test_without_a_seed_of_its_own_it_follows_torchs() -> None:
    manual_seed(None)
    torch.manual_seed(11)
    first = draw()
    torch.manual_seed(12)
    second = draw()
    assert not set(first) & set(second)
    torch.manual_seed(11)
    assert not set(draw()) & set(first), "going back to a seed replayed its noise"
    manual_seed(11)
    assert draw() == first


def test_a_seed_of_its_own_is_independent_of_torchs() -> None:
    manual_seed(5)
    torch.manual_seed(1)
    first = draw()
    manual_seed(5)
    torch.manual_seed(2)
    assert draw() == first


def test_torchs_own_random_numbers_are_left_alone() -> None:
    manual_seed(None)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw()
    manual_seed(7)
    draw()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1])
def test_any_64_bit_seed_will_do(seed: int) -> None:
    manual_seed(seed)
    assert len(set(draw())) == 5
