"""What a model still knows after a sequence of tasks: overall performance and backward transfer."""

import torch
from torch import Tensor


def overall_performance(R: Tensor) -> Tensor:
    """`OP = mean_j R[T, j]`: the mean performance on all T tasks once the last is learned. fp64 [...].

    R [..., T, T]: R[i, j] is the performance on task j, in any unit that is better when higher, after training on tasks
    0 .. i; leading axes (seeds, arms) are a batch. ValueError where R is not square or its last row holds NaN.
    """
    last = _square(R, tasks=1)[..., -1, :]
    if bool(last.isnan().any()):
        raise ValueError("R: the last row holds NaN: measure every task after training on the last one")
    return last.mean(-1)


def backward_transfer(R: Tensor) -> Tensor:
    """`BWT = mean_{i < T} (R[T, i] - R[i, i])`: what later tasks did to earlier ones, fp64 [...].

    Negative is forgetting. R as for `overall_performance`, T of 2 or more; its last row and its diagonal are read, so
    what is above the diagonal (tasks not trained yet) may be NaN. Lopez-Paz and Ranzato, "Gradient Episodic Memory",
    2017. ValueError where R is not square, is of one task, or holds NaN in what is read.
    """
    R = _square(R, tasks=2)
    change = (R[..., -1, :] - R.diagonal(dim1=-2, dim2=-1))[..., :-1]
    if bool(change.isnan().any()):
        raise ValueError("R: the last row or the diagonal holds NaN: measure each task once learned, and at the end")
    return change.mean(-1)


def _square(R: Tensor, tasks: int) -> Tensor:
    if R.dim() < 2 or R.shape[-1] != R.shape[-2] or R.shape[-1] < tasks:
        raise ValueError(f"R: [..., T, T] with T of {tasks} or more, not {list(R.shape)}")
    return R.to(torch.float64)
