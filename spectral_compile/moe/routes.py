"""Which routes tokens take, how evenly, and how many compositions of factors meet on one route."""

from typing import NamedTuple

import torch
from torch import Tensor


class EffectiveCompositions(NamedTuple):
    """Of `effective_compositions`, for the R routes that were taken, in the order of their ids.

    routes [R]: ids. per_route [R], fp64: N_eff of each. load [R], fp64: each route's share, of sum 1.
    """

    routes: Tensor
    per_route: Tensor
    load: Tensor

    @property
    def mean(self) -> Tensor:
        """N_eff averaged over routes by their load, fp64 scalar."""
        return (self.per_route * self.load).sum()


def effective_compositions(routes: Tensor, compositions: Tensor) -> EffectiveCompositions:
    """How many compositions of factors meet on a route: `N_eff(route) = 1 / sum_c p(c | route)^2`.

    routes [N]: integer ids, one an observation: an expert's, or those of `token_routes` for the whole choice of a
    token. compositions [N] (ids) or [N, F] (the labels of F factors, of which each distinct tuple is a composition).
    1 where a route serves a single composition, the number of compositions where it serves all alike.

    It is the plug-in estimate: a route seen n times cannot show more than n compositions. With few observations a
    route compare with compositions that are shuffled among observations. ValueError where the shapes do not fit, or
    for what is no integer. "Multi-Head Attention as a Source of Catastrophic Forgetting in MoE Transformers".
    """
    _integers("routes", routes)
    _integers("compositions", compositions)
    if routes.dim() != 1 or routes.numel() == 0:
        raise ValueError(f"routes: one id an observation, [N] with N > 0, not {list(routes.shape)}")
    if compositions.dim() not in (1, 2) or len(compositions) != len(routes) or compositions.numel() == 0:
        raise ValueError(
            f"compositions: [N] ids or [N, F] labels, N = {len(routes)} as of routes, not {list(compositions.shape)}"
        )
    composition = torch.unique(compositions.reshape(len(routes), -1), dim=0, return_inverse=True)[1]
    ids, route, seen = torch.unique(routes, return_inverse=True, return_counts=True)
    # Pairs that occur, not a table of routes by compositions: of both there may be as many as observations.
    pairs, count = torch.unique(torch.stack([route, composition], 1), dim=0, return_counts=True)
    same = torch.zeros(len(ids), dtype=torch.float64, device=routes.device)
    same.index_add_(0, pairs[:, 0], count.double().square())
    return EffectiveCompositions(ids, seen.double().square() / same, seen.double() / len(routes))


def token_routes(indices: Tensor) -> Tensor:
    """Ids [T] of the route each token takes as a whole: its set of experts, or of head-wise routes the tuple of sets.

    indices [T, k]: the experts that top-k chose, in any order, each at most once a token; [T, H, k] where H heads
    route their slices apart. Ids are from 0, in no meaningful order; equal ids are equal routes. ValueError for other
    shapes, for what is no integer, and for an expert chosen twice.
    """
    _integers("indices", indices)
    if indices.dim() not in (2, 3) or indices.numel() == 0:
        raise ValueError(
            f"indices: [T, k], or [T, H, k] of head-wise routes, none of them 0, not {list(indices.shape)}"
        )
    chosen = indices.sort(dim=-1).values
    if (chosen[..., 1:] == chosen[..., :-1]).any():
        raise ValueError("indices: a token chose one expert twice; give the top-k's indices, without padding")
    return torch.unique(chosen.flatten(1), dim=0, return_inverse=True)[1]


def route_load(indices: Tensor, routes: int) -> Tensor:
    """Share of each route [routes], fp64, of sum 1, in how often it was taken: `indices` of any shape, 0 .. routes - 1.

    For head-wise routes give `head * experts + expert`, or one head at a time. ValueError for no indices, for what is
    no integer, and for an index out of range.
    """
    _integers("indices", indices)
    if indices.numel() == 0:
        raise ValueError("indices: no token was routed, so there is no load; give at least one")
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= routes:
        raise ValueError(f"indices: {low} .. {high} are not within the {routes} routes 0 .. {routes - 1}")
    return torch.bincount(indices.flatten(), minlength=routes).double() / indices.numel()


def route_entropy(load: Tensor) -> Tensor:
    """Entropy [...] of loads [..., R] in nats, fp64: ln R where all routes are used alike, 0 where one takes all.

    ValueError for loads that are negative or no number, or that do not sum to 1 (to 1e-3).
    """
    shares = load.double()
    if load.dim() == 0 or not bool((shares >= 0).all()) or not bool(((shares.sum(-1) - 1).abs() <= 1e-3).all()):
        raise ValueError("load: shares [..., R], none negative, that sum to 1, as route_load gives them")
    return torch.special.entr(shares).sum(-1)


def _integers(name: str, values: Tensor) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name}: integers are wanted, not {values.dtype}")
