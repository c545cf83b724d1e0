"""spectral::measure and compare: look at an operand, or at a product, in calls that are measured; else do nothing.

Each hands on a copy of what it was given, a scale of one number or a product, so that no compiler leaves it out, and no
order between graphs has to be kept.
"""

import torch
from torch import Tensor

from spectral_compile.measuring import sessions, statistics
from spectral_compile.ops.center import center
from spectral_compile.ops.library import declare
from spectral_compile.ops.split_mm import add_low_rank


@torch.no_grad()
def measure(
    tensor_scale: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
    token_axis: int,
    step: Tensor,
    where: list[str],
) -> Tensor:
    """tensor_scale, that `spectral::quantize` found of x and the rest. token_axis: along which tokens lie, -1 where x
    is a weight. step: of `measuring.sessions.Session`; where: the operands that are quantised so, by `sessions.where`.
    """
    if not sessions.is_idle(step) and x.numel():
        how = statistics.Quantiser(seed, format, scale, axis, tile_rows, hadamard, stream)
        sessions.record(step, where, lambda: statistics.of_operand(x, mean, rows, how, tensor_scale, token_axis))
    return tensor_scale.clone()


@torch.no_grad()
def compare(
    product: Tensor,
    a: Tensor,
    a_mean: Tensor | None,
    a_rows: Tensor | None,
    a_transposed: bool,
    b: Tensor,
    b_mean: Tensor | None,
    b_rows: Tensor | None,
    b_transposed: bool,
    left: Tensor | None,
    right: Tensor | None,
    step: Tensor,
    where: str,
) -> Tensor:
    """product [M, N], compared with A @ B' + left (outer) right in fp32: a [M, K] less its mean is A, or A'; b the same
    for B [N, K].
    """

    def cosine() -> dict[str, float | None]:
        exact = _operand(a, a_mean, a_rows, a_transposed) @ _operand(b, b_mean, b_rows, b_transposed).t()
        return {"cosine": statistics.cosine(product, add_low_rank(exact, left, right))}

    if not sessions.is_idle(step) and product.numel():
        sessions.record(step, [where], cosine)
    return product.clone(memory_format=torch.contiguous_format)


def _operand(x: Tensor, mean: Tensor | None, rows: Tensor | None, transposed: bool) -> Tensor:
    x = x.to(torch.float32) if mean is None else center(x, mean, rows)
    return x.t() if transposed else x


def _fake_measure(tensor_scale: Tensor, *others: object) -> Tensor:
    return torch.empty_like(tensor_scale)


def _fake_compare(product: Tensor, *others: object) -> Tensor:
    return product.new_empty(product.shape)


declare(
    "measure(Tensor tensor_scale, Tensor x, Tensor? mean, Tensor? rows, Tensor? seed, str format, str scale, int axis,"
    " int tile_rows, bool hadamard, int stream, int token_axis, Tensor step, str[] where) -> Tensor",
    reference=measure,
    fake=_fake_measure,
)
declare(
    "compare(Tensor product, Tensor a, Tensor? a_mean, Tensor? a_rows, bool a_transposed,"
    " Tensor b, Tensor? b_mean, Tensor? b_rows, bool b_transposed, Tensor? left, Tensor? right,"
    " Tensor step, str where) -> Tensor",
    reference=compare,
    fake=_fake_compare,
)
