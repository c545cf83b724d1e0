"""The seed of stochastic rounding, an explicit input of every compiled training graph.

Each call of a compiled graph under autograd gets a fresh seed: a hash of the base seed, a counter and the rank. So
noise differs from step to step and from rank to rank, repeats when the program is repeated, and leaves the user's own
random numbers (dropout, data order) untouched.
"""

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

_MASK = (1 << 64) - 1


class _State:
    def __init__(self) -> None:
        self.base: int | None = None  # None: follow torch.initial_seed()
        self.calls: Counter[int] = Counter()  # by base seed, so that going back to a seed does not replay its noise


_state = _State()


def manual_seed(seed: int | None) -> None:
    """Seed stochastic rounding and restart its sequence.

    None, as at the start, follows `torch.manual_seed`: each seed given there has a sequence of its own, which goes on
    where it stopped when the seed comes back. Raises ValueError for anything but an integer or None.
    """
    if seed is not None and not isinstance(seed, int):
        raise ValueError(f"the seed is an integer or None, not {seed!r}")
    _state.base = seed
    _state.calls.clear()


def next_seed(device: torch.device) -> Tensor:
    """The next seed: int64 [], on `device`, made there without a copy from the host."""
    base = torch.initial_seed() if _state.base is None else _state.base
    word = _mix(_mix(_mix(base) ^ _state.calls[base]) ^ rank())
    _state.calls[base] += 1
    return torch.full((), word - (1 << 63), dtype=torch.int64, device=device)


def rank() -> int:
    """This process's number among those that train together; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): neighbouring inputs give unrelated outputs."""
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
