"""Groups of tokens as `torch._grouped_mm` takes them, and their places once each is padded to whole blocks.

Tokens lie in the order of their experts; `offsets` holds for each expert the token after its last (int32 or int64
[experts], on the device). Experts may have none; tokens after the last group belong to nobody.
"""

from torch import Tensor

_GOLDEN = 0x9E3779B1  # odd, so that no two of 2**32 experts share a stream


def spans(offsets: Tensor, tokens: int) -> list[tuple[int, int]]:
    """First token and token after the last of each expert. Waits for the device.

    Raises ValueError where offsets fall, or lead past the tokens that there are: such groups would read what is not
    theirs.
    """
    ends: list[int] = offsets.tolist()
    starts = [0, *ends[:-1]]
    if any(start > end for start, end in zip(starts, ends, strict=True)) or (ends and ends[-1] > tokens):
        raise ValueError(f"offsets of groups rise from 0 to at most {tokens} tokens: these are {ends}")
    return list(zip(starts, ends, strict=True))


def padded_spans(groups: list[tuple[int, int]], block: int) -> list[tuple[int, int]]:
    """Where each group lies once every group begins at a multiple of `block`."""
    found, first = [], 0
    for start, end in groups:
        found.append((first, first + end - start))
        first += -(-(end - start) // block) * block
    return found


def padded_tokens(tokens: int, experts: int, block: int) -> int:
    """Enough for any offsets, so that the size depends on none: each group needs less than a block more than it has."""
    return (tokens + experts * (block - 1) + block - 1) // block * block


def expert_stream(stream: int, expert: int) -> int:
    """The random stream of one expert's part of an operand; expert 0 has the operand's own."""
    return (stream + expert * _GOLDEN) % 2**32
