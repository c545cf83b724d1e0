"""Head-wise routing of an unchanged router and unchanged experts, slowly and plainly: what each mode means."""

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("subtoken", "bank", "mask", "vote")


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


def headwise_moe(
    x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, *, top_k: int, heads: int, mode: str
) -> Tensor:
    """[tokens, d]: all experts computed densely, those that are not chosen with a gate of zero.

    x [tokens, d], router [E, d], gate_up [E, 2f, d] (gates first), down [E, d, f]. One head is the plain layer, in all
    modes. ValueError for an unknown mode, or where heads do not divide d.

    - subtoken: y[slice h] = sum_e g_he down_e[slice h, :] act(gate_up_e[:, slice h] x_h)
    - bank: y = sum_h sum_e g_he down_e act(gate_up_e[:, slice h] x_h)
    - mask: y = sum_e mean_h(g_he) down_e act(gate_up_e x without the slices that did not choose e)
    - vote: the plain layer, with the gates of `vote`
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; modes are {', '.join(MODES)}")
    if x.shape[-1] % heads:
        raise ValueError(f"{x.shape[-1]} features do not divide into {heads} slices")
    g = head_gates(x, router, top_k, heads)
    slices, columns = x.unflatten(-1, (heads, -1)), gate_up.unflatten(-1, (heads, -1))
    if mode in ("subtoken", "bank"):
        hidden = _gated(torch.einsum("thc,ezhc->thez", slices, columns)) * g[..., None]
        if mode == "bank":
            return torch.einsum("thef,edf->td", hidden, down)
        return torch.einsum("thef,ehcf->thc", hidden, down.unflatten(1, (heads, -1))).flatten(1)
    if mode == "mask":
        hidden = _gated(torch.einsum("the,thc,ezhc->tez", (g > 0).to(x.dtype), slices, columns))
        return torch.einsum("te,tef,edf->td", g.mean(1), hidden, down)
    hidden = _gated(torch.einsum("td,ezd->tez", x, gate_up))
    return torch.einsum("te,tef,edf->td", vote(g, top_k), hidden, down)


def _gated(z: Tensor) -> Tensor:
    gate, up = z.chunk(2, dim=-1)
    return F.silu(gate) * up
