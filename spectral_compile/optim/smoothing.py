"""Singularity smoothing: the top singular values of a weight brought down, the rest of it left alone.

    W <- W - U_k S_k V_k' + U_k f(S_k) V_k'

Top singular values grow with training and align with what passes through, until the loss explodes (parametric
singularity smoothing, PSS). What the paper leaves open (f, k, how much at once) is an option here.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from spectral_compile.optim.parts import Part, parts_of
from spectral_compile.optim.sharding import WHOLE, Sharding, local
from spectral_compile.optim.subspace import Subspace, top_subspace
from spectral_compile.validation import check_name, settings

Function = Literal["clip", "log", "softplus", "softmax", "conv3"]
FUNCTIONS: tuple[str, ...] = get_args(Function)


@settings
class Smoothing:
    """How to smooth. function: see `reshaped`. share: of min(m, n), the fewest directions that are smoothed. cap: the
    largest |dW|_F / |W|_F of one call; on a spectrum that falls as 1/i, an uncapped clip would take 98 % of |W|_F^2.
    """

    function: Function = "clip"
    share: float = 0.05
    cap: float = 0.1
    iterations: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("'share' is of min(m, n), above 0 and at most 1")
        if not self.cap > 0:
            raise ValueError("'cap' is a ratio of norms, above 0")
        if self.iterations < 1:
            raise ValueError("'iterations' is 1 or more")


DEFAULT = Smoothing()


class Smoothed(NamedTuple):
    """weight, in its own type, of a DTensor this rank's part; rank [...]: directions smoothed; change [...]:
    |dW|_F / |W|_F, at most the cap; sigma [..., k + 1], before, and `target`, after.
    """

    weight: Tensor
    rank: Tensor
    change: Tensor
    sigma: Tensor
    target: Tensor


def smoothed(weight: Tensor, options: Smoothing = DEFAULT, part: Part | None = None) -> Smoothed:
    """A weight [m, n], or a stack of them [..., m, n], with its top singular values smoothed; not in place.

    part: of a parameter that holds several matrices. k = max(floor(stable rank), ceil(share min(m, n))), each matrix
    its own, and less than min(m, n). Its randomised SVD is computed afresh: for the rare step after a trigger. Waits
    for the device, to learn k. A weight of NaN or infinity, zero, or of min(m, n) = 1 comes back as it is.
    """
    part = part or parts_of(weight)[0]
    values, smaller = part.of(local(weight)), min(part.m, part.n)
    energy = squared_norm(values, part.sharding)
    largest = top_subspace(weight, 1, options.iterations, part).s[..., 0]
    count = rank_to_smooth(energy / largest.double().square(), smaller, options.share)
    most = int(count.max()) if count.numel() else 0
    found = top_subspace(weight, min(smaller, most + 1), options.iterations, part)
    return smoothed_by(values, found, count, energy, options)


def smoothed_by(weight: Tensor, found: Subspace, count: Tensor, energy: Tensor, options: Smoothing) -> Smoothed:
    """`smoothed`, for a subspace that is tracked anyway: no host sync.

    weight [..., m, n], this rank's part; found: of k + 1 directions, from `top_subspace` or `rotated` (s falls, V is
    orthonormal; this rank's part of U and V); count [...]: how many of them to smooth, at most k, and at least one
    direction must be left for the level; energy [...]: |W|_F^2.
    """
    target = reshaped(found.s, count.clamp(max=found.s.shape[-1] - 1), options.function)
    difference = target - found.s
    size, norm = torch.linalg.vector_norm(difference, dim=-1), energy.to(found.s.dtype).sqrt()
    allowed = (options.cap * norm / size).clamp(max=1)  # |dW|_F is |difference|, as U and V are orthonormal
    allowed = torch.where((size > 0) & norm.isfinite() & size.isfinite(), allowed, 0.0)
    difference = torch.where(allowed[..., None] > 0, difference * allowed[..., None], 0.0)
    U, V = (torch.where(allowed[..., None, None] > 0, factor, 0.0) for factor in (found.U, found.V))
    change = (U * difference[..., None, :]) @ V.mT
    moved = torch.where(norm > 0, torch.linalg.vector_norm(difference, dim=-1) / norm, 0.0)
    return Smoothed((weight + change).to(weight.dtype), count, moved, found.s, found.s + difference)


def reshaped(sigma: Tensor, count: Tensor, function: str = "clip") -> Tensor:
    """f of the first `count` [...] values of sigma [..., k + 1], which fall; the others are as they were.

    With c = sigma[count], the largest value that stays:

    - clip: min(sigma, c)
    - log: c (1 + log(sigma / c)): of slope 1 at c
    - softplus: c (1 + log 2 - softplus(1 - sigma / c)): a clip with a round corner, from c to 1.69 c
    - softmax: the sum of the values, shared out by softmax(sigma / sigma[0]): none is more than e times another
    - conv3: the mean of each and its two neighbours among the first `count`, reflected at both ends

    The paper names these five and defines none of them: the scales, chosen so that nothing depends on the units of W,
    are ours. Raises ValueError for another name.
    """
    check_name("function", function, FUNCTIONS)
    count = count[..., None]
    index = torch.arange(sigma.shape[-1], device=sigma.device).expand_as(sigma)
    chosen = index < count
    level = sigma.gather(-1, count.clamp(0, sigma.shape[-1] - 1))
    ratio = torch.where(chosen & (level > 0), sigma / level, 1.0)
    if function == "clip":
        result = torch.minimum(sigma, level)
    elif function == "log":
        result = level * (1 + ratio.log())
    elif function == "softplus":
        result = level * (1 + math.log(2) - torch.nn.functional.softplus(1 - ratio))
    elif function == "softmax":
        scaled = torch.where(sigma[..., :1] > 0, sigma / sigma[..., :1], 0.0)
        weights = torch.softmax(scaled.masked_fill(~chosen, -torch.inf), -1)
        result = weights * torch.where(chosen, sigma, 0.0).sum(-1, keepdim=True)
    else:
        last = (count - 1).clamp(min=0)
        right = torch.where(index < last, index + 1, last - 1)
        neighbours = [sigma.gather(-1, torch.minimum(near, last).clamp(min=0)) for near in ((index - 1).abs(), right)]
        result = (sigma + neighbours[0] + neighbours[1]) / 3
        result = torch.where(count > 1, result, sigma)
    return torch.where(chosen, result, sigma)


def rank_to_smooth(stable_rank: Tensor, smaller: int, share: float) -> Tensor:
    """k = max(floor(SR), ceil(share min(m, n))) [...], below min(m, n); 0 where SR is no number.

    stable_rank [...]: |W|_F^2 / sigma_1^2.
    """
    usable = stable_rank.isfinite()
    rank = torch.where(usable, stable_rank, 0.0).floor().long().clamp(min=math.ceil(share * smaller))
    return torch.where(usable, rank, 0).clamp(max=smaller - 1)


def squared_norm(matrix: Tensor, sharding: Sharding = WHOLE) -> Tensor:
    """|W|_F^2 [...] of a matrix [..., m, n], of which this rank has a part; fp64."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), dtype=wide)
    return sharding.over_all(norm.double().square())
