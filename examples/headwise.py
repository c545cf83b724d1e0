"""Which experts head-wise routing chooses, for its measures: a compiled model shows nothing of its routes."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["subtoken", "bank", "mask", "vote"]
MODES: tuple[Mode, ...] = get_args(Mode)


def gates(logits: Tensor, top_k: int) -> Tensor:
    """softmax, top-k, divided by the sum: [..., experts], zero for experts that are not chosen."""
    weights, indices = torch.topk(F.softmax(logits, dim=-1), top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, indices, weights / weights.sum(-1, keepdim=True))


def head_gates(x: Tensor, router: Tensor, top_k: int, heads: int) -> Tensor:
    """Gates [tokens, heads, experts] of each slice of x [tokens, d] by its columns of the router [experts, d].

    Logits are scaled by sqrt(heads): a slice's are that much smaller than a token's.
    """
    logits = torch.einsum("thc,ehc->the", x.unflatten(-1, (heads, -1)), router.unflatten(-1, (heads, -1)))
    return gates(heads**0.5 * logits, top_k)


def vote(head_gates: Tensor, top_k: int) -> Tensor:
    """Gates [tokens, experts]: the heads' mean, for the experts of which it is largest; less than 1 in all, where heads
    do not agree.
    """
    weights, indices = head_gates.mean(1).topk(top_k, dim=-1)
    return torch.zeros_like(head_gates[:, 0]).scatter(-1, indices, weights)


def chosen(x: Tensor, router: Tensor, *, top_k: int, heads: int, mode: str) -> Tensor:
    """Indices of the chosen experts: [tokens, top_k] of one head and of `vote`, [tokens, heads, top_k] otherwise."""
    g = head_gates(x, router, top_k, heads)
    if heads == 1 or mode == "vote":
        g = vote(g, top_k)
    return g.topk(top_k, dim=-1).indices
