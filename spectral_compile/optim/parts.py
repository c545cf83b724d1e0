"""The matrices that one parameter holds: one, a stack of experts, or several side by side (fused QKV, gate and up)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from spectral_compile.optim.sharding import Sharding, local_range, sharding_of


@dataclass(frozen=True)
class Part:
    """One matrix [..., m, n], whole extents, of a parameter: rows `start` to `stop` of those that this rank has.

    cols: which of the n columns this rank has. transposed: of the parameter's transpose. sharding: how the ranks'
    parts add up. All but start, stop and cols is the same on every rank.
    """

    m: int
    n: int
    start: int
    stop: int
    cols: tuple[int, int]
    transposed: bool
    sharding: Sharding

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a local tensor shaped as the parameter, as a view."""
        return (tensor.mT if self.transposed else tensor)[..., self.start : self.stop, :]

    def rank(self, share: float) -> int:
        """How many singular directions `share` of them all are; at least one."""
        return max(1, round(share * min(self.m, self.n)))


def parts_of(parameter: Tensor, sizes: Sequence[int] | None = None, dim: int = -2) -> list[Part]:
    """The matrices of a parameter [m, n] or [experts, m, n], cut along `dim` (-2 or -1) into `sizes`, if any.

    Raises ValueError where the sizes do not add up, or where a DTensor's placement allows no cut.
    """
    transposed = sizes is not None and dim == -1
    sharding = sharding_of(parameter)
    if transposed:
        sharding = sharding.transposed
    rows, cols = (-1, -2) if transposed else (-2, -1)
    m, n = parameter.shape[rows], parameter.shape[cols]
    own = local_range(parameter, cols) if sharding.cols else (0, n)
    if sizes is None:
        return [Part(m, n, 0, m, own, False, sharding)]
    if dim not in (-2, -1) or sum(sizes) != m or min(sizes) < 1:
        shape = list(parameter.shape)
        raise ValueError(f"a split into {list(sizes)} along dim {dim} does not fit a parameter of shape {shape}")
    first, last = local_range(parameter, rows)
    found, begin = [], 0
    for size in sizes:
        start, stop = (min(max(edge, first), last) - first for edge in (begin, begin + size))
        found.append(Part(size, n, start, stop, own, transposed, sharding))
        begin += size
    return found
