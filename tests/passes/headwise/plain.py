"""Mixtures of experts as people write them by hand: the same parameters, dispatched in five ways."""

import torch
from torch import Tensor, nn

from tests.passes.headwise.reference import Layer, glu, softmax_top_k


class Plain(nn.Module):
    """Softmax, top-k, normalised; experts [E, 2f, d] and [E, d, f]; `dispatch` says how."""

    def __init__(self, dispatch: str, d: int = 32, f: int = 24, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.dispatch, self.experts, self.k = dispatch, experts, k
        self.router = nn.Linear(d, experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * f, d) / d**0.5)
        self.down = nn.Parameter(torch.randn(experts, d, f) / f**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = torch.topk(torch.softmax(self.router(x), -1), self.k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return getattr(self, self.dispatch)(x, weights, indices)

    def loop(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """Every expert sees every token."""
        y = torch.zeros_like(x)
        for e in range(self.experts):
            gate = (weights * (indices == e)).sum(-1, keepdim=True)
            hidden = glu(nn.functional.linear(x, self.gate_up[e]))
            y = y + gate * nn.functional.linear(hidden, self.down[e])
        return y

    def einsum(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """One-hot gates, all experts at once."""
        gates = torch.zeros(x.shape[0], self.experts).scatter(1, indices, weights)
        hidden = glu(torch.einsum("td,efd->tef", x, self.gate_up))
        return torch.einsum("te,ted->td", gates, torch.einsum("tef,edf->ted", hidden, self.down))

    def gathered(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """Each choice fetches its expert's weights."""
        ids = indices.flatten()
        rows = x.repeat_interleave(self.k, dim=0).unsqueeze(1)
        hidden = glu(torch.bmm(rows, self.gate_up[ids].transpose(1, 2)))
        out = torch.bmm(hidden, self.down[ids].mT).squeeze(1) * weights.reshape(-1, 1)
        return out.view(-1, self.k, x.shape[-1]).sum(1)

    def sorted(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """As torchtitan has it: tokens in the order of their experts, counted, and added up where they came from."""
        counts = torch.histc(indices.view(-1).float(), bins=self.experts, min=0, max=self.experts - 1)
        order = torch.argsort(indices.view(-1), stable=True)
        token = order // self.k
        rows = torch.gather(x, 0, token.reshape(-1, 1).expand(-1, x.shape[-1]))
        offsets = torch.cumsum(counts, 0, dtype=torch.int32)
        product = torch.nn.functional.grouped_mm
        hidden = glu(product(rows, self.gate_up.transpose(-2, -1), offs=offsets))
        out = product(hidden, self.down.transpose(-2, -1), offs=offsets)
        out = out * weights.view(-1)[order].reshape(-1, 1)
        return torch.zeros_like(x).scatter_add(0, token.reshape(-1, 1).expand(-1, x.shape[-1]), out)

    def layer(self) -> Layer:
        """The parameters, for the reference."""
        up, down = self.gate_up.detach().float().mT, self.down.detach().float().mT
        return Layer(self.router.weight.detach().float(), up, down, softmax_top_k, glu)


DISPATCHES = ("loop", "einsum", "gathered", "sorted")
