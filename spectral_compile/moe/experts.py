"""How alike the experts of a layer are, and whether its router looks along the directions that they read."""

import torch
from torch import Tensor


def expert_overlap(weights: Tensor, rank: int) -> Tensor:
    """Mean overlap of experts' top right singular subspaces: |V_i' V_j|_F^2 / rank, over all pairs i < j.

    weights [E, m, n], E of 2 or more: V_i [n, rank] spans what expert i reads most of its input's n features with; give
    the transposed for what it writes. fp64 scalar: the mean squared cosine of the principal angles, 1 where all
    experts share one subspace, 0 where all are orthogonal, rank / n expected of random ones. "SD-MoE" has .9 before it
    separates experts and under .1 after.

    From an exact SVD in fp64: for now and then, not for every step. Where the singular values on both sides of `rank`
    are equal, the subspace is anyone's. ValueError for other shapes, an impossible rank, an expert of lower rank or one
    that is not finite.
    """
    V = _top_right(weights, rank)
    if len(V) < 2:
        raise ValueError("weights: an overlap needs two experts or more, not one")
    i, j = torch.triu_indices(len(V), len(V), offset=1, device=V.device)
    return _energies(V)[i, j].mean() / rank


def router_alignment(router: Tensor, experts: Tensor, rank: int) -> Tensor:
    """Share of each router row's energy in its expert's top input subspace: |V_e' r_e|^2 / |r_e|^2, [E], fp64, 0 .. 1.

    router [E, d]: the weight whose product with a token gives its logits. experts [E, m, d]: what multiplies the same
    token, as the gate's or up's weight. rank: of V_e [d, rank]; 1 % of min(m, d) in "SD-MoE". rank / d is expected of a
    router that knows nothing of its experts. ValueError as for `expert_overlap`, for shapes that do not fit, and for a
    router row that is zero or not finite.
    """
    if router.dim() != 2 or experts.dim() != 3 or router.shape != (experts.shape[0], experts.shape[2]):
        raise ValueError(
            f"router: [E, d] for experts [E, m, d], not {list(router.shape)} for {list(experts.shape)}; "
            "experts that are stored [E, d, m] are to be transposed"
        )
    V, rows = _top_right(experts, rank), router.detach().double()
    energy = rows.square().sum(-1)
    if not bool((energy.isfinite() & (energy > 0)).all()):
        raise ValueError("router: a row is zero or not finite, so it has no direction")
    return (rows[:, None] @ V).square().sum((-2, -1)) / energy


def _energies(V: Tensor) -> Tensor:
    """|V_i' V_j|_F^2 [E, E] of V [E, n, r], an expert at a time: all at once would be [E, E, r, r]."""
    return torch.stack([(v.mT @ V).square().sum((-2, -1)) for v in V])


def _top_right(weights: Tensor, rank: int) -> Tensor:
    """Top right singular vectors [E, n, rank] of weights [E, m, n], fp64."""
    if weights.dim() != 3 or weights.numel() == 0:
        raise ValueError(f"weights: a stack of matrices [E, m, n], not {list(weights.shape)}")
    if not 1 <= rank <= min(weights.shape[1:]):
        raise ValueError(f"rank: 1 .. {min(weights.shape[1:])} for experts of {list(weights.shape[1:])}, not {rank}")
    matrices = weights.detach().double()
    if not bool(matrices.isfinite().all()):
        raise ValueError("weights: not all are finite, so an expert has no singular directions")
    _, s, Vt = torch.linalg.svd(matrices, full_matrices=False)
    # What rounding left of a zero is no direction.
    lacking = s[:, rank - 1] <= s[:, 0] * torch.finfo(torch.float64).eps * max(weights.shape[1:])
    if bool(lacking.any()):
        raise ValueError(f"rank: expert {int(lacking.nonzero()[0])} has a rank below {rank}; ask for fewer directions")
    return Vt[:, :rank].mT
