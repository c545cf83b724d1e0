"""How the local parts of a DTensor add up: over which process groups the rows and the columns of a matrix are split.

A matrix is never gathered. What is contracted over a split axis is summed over that axis' groups; everything else is
local. Any placement that cuts rows into sets of rows and columns into sets of columns will do, uneven and empty
shards included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_compile._torch import global_offset, is_strided_shard

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard
else:  # a build of torch without torch.distributed has no DTensor either
    DTensor = Replicate = Shard = None  # type: ignore[assignment, misc]


@dataclass(frozen=True)
class Sharding:
    """The process groups that split the rows, and those that split the columns, of the matrices in the last two axes.

    Empty for a tensor that is whole. A split over the expert axis of [experts, m, n] needs no sum, and is not listed.
    """

    rows: tuple[Any, ...] = ()
    cols: tuple[Any, ...] = ()

    def over_rows(self, part: Tensor) -> Tensor:
        """The sum of what the ranks contracted over their own rows. Not in place."""
        return _summed(part, self.rows)

    def over_cols(self, part: Tensor) -> Tensor:
        """The sum of what the ranks contracted over their own columns. Not in place."""
        return _summed(part, self.cols)

    def over_all(self, part: Tensor) -> Tensor:
        """The sum over rows and columns: of squares, for a norm."""
        return _summed(part, self.rows + self.cols)

    @property
    def transposed(self) -> "Sharding":
        """That of the transposed matrix."""
        return Sharding(self.cols, self.rows)


WHOLE = Sharding()


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, as a view; any other tensor itself."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def sharding_of(tensor: Tensor) -> Sharding:
    """Of a tensor [..., m, n]. Raises ValueError for a pending sum (`Partial`), of which no rank has the values."""
    if not is_distributed(tensor):
        return Sharding()
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    rows: list[Any] = []
    cols: list[Any] = []
    for axis, placement in enumerate(placements):
        if placement.is_partial():
            raise ValueError(f"a DTensor with placements {placements} is a pending sum; redistribute it first")
        dim = getattr(placement, "dim", None)  # Replicate has none
        if dim is not None and mesh.size(axis) > 1 and dim >= tensor.dim() - 2:
            (rows if dim == tensor.dim() - 2 else cols).append(mesh.get_group(axis))
    return Sharding(tuple(rows), tuple(cols))


def replicas(tensor: Tensor) -> int:
    """How many of the ranks of this program hold the same part: all of them that of a plain tensor."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    world = torch.distributed.get_world_size()
    if not is_distributed(tensor):
        return world
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    parts = [mesh.size(axis) for axis, placement in enumerate(placements) if not placement.is_replicate()]
    return world // math.prod(parts)


def like(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, with the placements of its parameter."""
    if is_distributed(tensor) and gradient.placements != tensor.placements:  # type: ignore[attr-defined]
        return gradient.redistribute(placements=tensor.placements)  # type: ignore[attr-defined]
    return gradient


def right_factor(matrix: Tensor, part: Tensor, *, transposed: bool = False) -> Tensor:
    """A factor [..., n, k] of which this rank has `part`, distributed as the columns of `matrix` [..., m, n] are.

    transposed: as its rows are. A plain tensor where the matrix is one.
    """
    if not is_distributed(matrix):
        return part
    rows = matrix.dim() - 2
    axis = rows if transposed else rows + 1

    def of_factor(placement: Any) -> Any:
        dim = getattr(placement, "dim", None)
        if dim is not None and dim < rows:
            return placement
        return Shard(rows) if dim == axis else Replicate()

    shape = torch.Size((*matrix.shape[:-2], matrix.shape[axis], part.shape[-1]))
    return DTensor.from_local(
        part,
        matrix.device_mesh,  # type: ignore[attr-defined]
        [of_factor(placement) for placement in matrix.placements],  # type: ignore[attr-defined]
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def local_range(tensor: Tensor, dim: int) -> tuple[int, int]:
    """Which indices of an axis, from first to before last, this rank has. Raises ValueError where they are no range."""
    if not is_distributed(tensor):
        return 0, tensor.shape[dim]
    if any(is_strided_shard(placement) for placement in tensor.placements):  # type: ignore[attr-defined]
        raise ValueError(
            f"placements {tensor.placements} interleave the ranks; "  # type: ignore[attr-defined]
            "split or start such a matrix before it is sharded twice along one axis"
        )
    first = global_offset(tensor)[dim]
    return first, first + local(tensor).shape[dim]


def _summed(part: Tensor, groups: Sequence[Any]) -> Tensor:
    if groups:
        part = part.clone(memory_format=torch.contiguous_format)
        for group in groups:
            torch.distributed.all_reduce(part, group=group)
    return part
