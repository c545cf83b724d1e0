"""The top singular subspace of a matrix, tracked from step to step by one power iteration a step.

Two products with the matrix carry all the cost; what is done to the k columns in between is k/n of it. It is done in
fp64, which makes Cholesky-QR safe on fp32 columns without ever asking the host whether it worked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_compile.optim.parts import Part, parts_of
from spectral_compile.optim.sharding import WHOLE, Sharding, local, right_factor, sharding_of

_OVERSAMPLING = 8  # more columns than asked for, while the iteration is cold (Halko, Martinsson and Tropp, 2011)


class Subspace(NamedTuple):
    """U [..., m, k] orthonormal, s [..., k], V [..., n, k] with columns of length 1: `U diag(s) V' = U U' M`, to fp32
    rounding, whatever V the iteration started from.

    fp32 (fp64 for an fp64 matrix). Columns of U that belong to no direction of M are zero, and so is their s; their V
    is what it was. From `top_subspace` and `rotated`, V is orthonormal as well and s falls.
    """

    U: Tensor
    s: Tensor
    V: Tensor


def power_step(matrix: Tensor, V: Tensor, iterations: int = 1, sharding: Sharding | None = None) -> Subspace:
    """Block power iteration from V: `P = M V; U = qr(P) with diag R > 0; Z = M' U; s = column lengths of Z; V = Z / s`.

    matrix [..., m, n], of any floating type, zero or not of full rank if it must be; V [..., n, k], k at most
    min(m, n), of any lengths. Leading axes are a batch (experts). A matrix that holds NaN or infinity gives back the V
    it was given, beside a U and s of NaN. No host sync.

    A DTensor (or its local part, with its sharding) goes with V as `start` distributes it, and what this rank has of
    the result comes back: U as the rows of the matrix are split, V as its columns. An iteration sums over the ranks two
    [k, k] matrices, k squares and, of the two products, the one that contracts over the split axis, k columns. The
    matrix itself is never gathered.
    """
    sharding = sharding_of(matrix) if sharding is None else sharding
    found = power_steps([local(matrix)], local(V)[None], sharding, iterations)
    return Subspace(*(factor[0] for factor in found))


def power_steps(matrices: Sequence[Tensor], V: Tensor, sharding: Sharding = WHOLE, iterations: int = 1) -> Subspace:
    """`power_step` for several matrices [..., m, n] of one shape, with V [b, ..., n, k], in one batch of factors.

    The products are one a matrix, because stacking the matrices would cost as much; the rest is batched.
    """
    dtype = torch.promote_types(matrices[0].dtype, torch.float32)  # half precision is multiplied as fp32
    matrices = [matrix.to(dtype) for matrix in matrices]
    V = V.to(dtype)
    for _ in range(iterations):
        U = orthonormal(
            sharding.over_cols(_stacked([M @ v for M, v in zip(matrices, V.unbind(), strict=True)])), sharding
        )
        # U'M and not M'U: BLAS reads a row-major M twice as fast that way, and what follows runs along its rows.
        Z = sharding.over_rows(_stacked([u.mT @ M for M, u in zip(matrices, U.unbind(), strict=True)]))
        # fp64: squares of small gradients underflow in fp32.
        s = torch.linalg.vector_norm(Z, dim=-1, dtype=torch.float64)
        if sharding.cols:
            s = sharding.over_cols(s.square()).sqrt()
        usable = (s > 0) & (s.sum(-1, keepdim=True) < torch.inf)
        s = s.to(dtype)
        V = torch.where(usable[..., None], Z / s[..., None], V.mT).mT
    return Subspace(U, s, V)


def orthonormal(P: Tensor, sharding: Sharding = WHOLE) -> Tensor:
    """Orthonormal columns that span those of P [..., m, k], by Cholesky-QR: Q = P R^-1 with diag R > 0.

    Columns are first brought to length 1, which makes those of a warm power iteration nearly orthonormal; the Gram
    matrix is in fp64, where Cholesky-QR works up to a condition of 1e7, all that fp32 columns can have but for exact
    dependence; it is done twice, so Q is orthonormal to rounding. An exactly dependent column's pivot is a shift that
    no other pivot falls to: it comes out as zero. So the fallback is in the arithmetic, and no host sync asks for it.
    (Yamazaki, Tomov and Dongarra 2015 for the mixed precision, Fukaya et al. 2020 for the shift.)

    With rows split over ranks, two sums of [k, k] over them. NaN in, NaN out.
    """
    Q = P.double()
    shift = 1e-14 * P.shape[-1]
    gram = sharding.over_rows(Q.mT @ Q)
    inverse = (gram.diagonal(dim1=-2, dim2=-1) + 1e-300).rsqrt()  # a column of zeros has a pivot of zero below
    gram = gram * inverse[..., :, None] * inverse[..., None, :]
    gram.diagonal(dim1=-2, dim2=-1).add_(shift)
    L, _ = torch.linalg.cholesky_ex(gram)
    dependent = L.diagonal(dim1=-2, dim2=-1) < (10 * shift) ** 0.5
    to_q = torch.linalg.solve_triangular(L, torch.diag_embed(inverse), upper=False).mT
    Q = Q @ to_q.masked_fill(dependent[..., None, :], 0.0)

    L, _ = torch.linalg.cholesky_ex(sharding.over_rows(Q.mT @ Q) + torch.diag_embed(dependent))
    Q = torch.linalg.solve_triangular(L.mT, Q, upper=True, left=False)
    return Q.to(P.dtype)


def _stacked(factors: list[Tensor]) -> Tensor:
    """Along a new first axis; one alone is not copied."""
    return factors[0][None] if len(factors) == 1 else torch.stack(factors)


def start(matrix: Tensor, k: int, iterations: int = 3) -> Tensor:
    """V [..., n, k] to start from: a randomised SVD's range, the same at every call and on every rank.

    `iterations` counts both products: 3 do what `svd_lowrank(niter=2)` does. Of a zero or non-finite matrix, random
    orthonormal columns. A DTensor where the matrix is one, split as its columns are; in the matrix's type.
    """
    (part,) = parts_of(matrix)
    return right_factor(matrix, start_parts([local(matrix)], k, part, iterations)[0].to(matrix.dtype))


def start_parts(matrices: Sequence[Tensor], k: int, part: Part, iterations: int = 3) -> Tensor:
    """`start`, V [b, ..., n, k], for several matrices of one shape, of which this rank has what `part` says."""
    chance = torch.Generator().manual_seed(0)  # of its own: starting to track must not shift the user's random numbers
    gaussian = torch.linalg.qr(torch.randn(part.n, k, generator=chance, dtype=torch.float64))[0]
    first = matrices[0]
    V = gaussian[slice(*part.cols)].to(first.device, torch.promote_types(first.dtype, torch.float32))
    return power_steps(matrices, V.expand(len(matrices), *first.shape[:-2], *V.shape), part.sharding, iterations).V


def rotated(found: Subspace, sharding: Sharding = WHOLE) -> Subspace:
    """The same U U' M by its own singular vectors (Rayleigh-Ritz): s falls, and V is orthonormal.

    `eigh` of [k, k] waits for the device: for what happens now and then. A subspace of NaN stays one.
    """
    Z = (found.V * found.s[..., None, :]).double()
    gram = sharding.over_cols(Z.mT @ Z)
    finite = gram.isfinite().all(-1).all(-1)[..., None, None]
    squares, W = torch.linalg.eigh(torch.where(finite, gram, 0.0))  # raises on NaN
    W = W.flip(-1)
    s = squares.flip(-1).clamp(min=0).sqrt()
    V = orthonormal(Z @ W, Sharding(rows=sharding.cols))
    nan = torch.where(finite, 0.0, torch.nan)
    dtype = found.U.dtype
    return Subspace((found.U.double() @ W + nan).to(dtype), (s + nan[..., 0]).to(dtype), V.to(dtype))


def top_subspace(matrix: Tensor, k: int, iterations: int = 3, part: Part | None = None) -> Subspace:
    """Randomised top-k SVD of a matrix [..., m, n], k at most min(m, n): s falls, U and V are orthonormal.

    part: of a parameter that holds several matrices. Iterates with a few columns more than asked for. Of a DTensor,
    what this rank has of U and V. See `rotated` for NaN, and for waiting.
    """
    part = part or parts_of(matrix)[0]
    width = min(k + _OVERSAMPLING, part.m, part.n)
    values = [part.of(local(matrix))]
    V = start_parts(values, width, part, iterations - 1)
    U, s, V = rotated(power_steps(values, V, part.sharding), part.sharding)
    return Subspace(U[0, ..., :k], s[0, ..., :k], V[0, ..., :k])
