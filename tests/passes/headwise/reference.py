"""Head-wise routing as its equations say it: every expert for every token, one after another; and a layer's parts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Gates = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # logits [T, E] and k to weights [T, k] and indices [T, k]


@dataclass
class Layer:
    """router [E, d]; up [E, d, F]; down [E, f, d]; biases where there are any."""

    router: Tensor
    up: Tensor
    down: Tensor
    gates: Gates
    act: Callable[[Tensor], Tensor]
    router_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def expert(self, e: int, hidden: Tensor, features: slice) -> Tensor:
        """What an expert makes of its hidden layer, in some of the features."""
        out = self.act(hidden + (0 if self.up_bias is None else self.up_bias[e])) @ self.down[e][:, features]
        return out + (0 if self.down_bias is None else self.down_bias[e][features])


def headwise(layer: Layer, x: Tensor, mode: str, heads: int, k: int, top_k: int, scale: float) -> Tensor:
    """[T, d] of x [T, d]; k experts for each head's slice, top_k for a token after a vote."""
    tokens, features = x.shape
    width, experts = features // heads, len(layer.router)
    slices = [slice(h * width, (h + 1) * width) for h in range(heads)]
    everything = slice(0, features)
    gates, chosen = [], []
    for part in slices:
        logits = x[:, part] @ layer.router[:, part].T
        if layer.router_bias is not None:
            logits = logits + layer.router_bias / heads
        weights, indices = layer.gates(logits * scale, k)
        gates.append(torch.zeros(tokens, experts).scatter(1, indices, weights.float()))
        chosen.append(torch.zeros(tokens, experts).scatter(1, indices, 1.0))
    mean = torch.stack(gates).mean(0)
    y = torch.zeros(tokens, features)
    if mode == "vote":
        weights, indices = mean.topk(top_k)
        mean = torch.zeros(tokens, experts).scatter(1, indices, weights)
    for e in range(experts):
        if mode == "vote":
            y = y + mean[:, e : e + 1] * layer.expert(e, x @ layer.up[e], everything)
            continue
        by_head = [x[:, part] @ layer.up[e][part] for part in slices]
        if mode == "mask":
            hidden = sum(one[:, e : e + 1] * part for one, part in zip(chosen, by_head, strict=True))
            y = y + mean[:, e : e + 1] * layer.expert(e, hidden, everything)
            continue
        for part, gate, hidden in zip(slices, gates, by_head, strict=True):
            into = part if mode == "subtoken" else everything
            added = torch.zeros(tokens, features)
            added[:, into] = gate[:, e : e + 1] * layer.expert(e, hidden, into)
            y = y + added
    return y


def glu(hidden: Tensor) -> Tensor:
    """Of gate and up side by side."""
    gate, up = hidden.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def softmax_top_k(logits: Tensor, k: int, normalise: bool = True) -> tuple[Tensor, Tensor]:
    """The chain of most families."""
    weights, indices = logits.float().softmax(-1).topk(k)
    return (weights / weights.sum(-1, keepdim=True) if normalise else weights), indices
