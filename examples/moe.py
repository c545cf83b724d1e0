"""A mixture-of-experts transformer of one layer, in plain PyTorch: attention is given, router and experts are to train.

Attention stands for that of a pretrained model whose heads have specialised: head h looks for tokens of kind h, and
what it finds there is its slice of the features that the router reads. Only router and experts have gradients, as where
adapters of experts are trained on a frozen model, so what is forgotten is forgotten there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MoEConfig:
    """Sizes of a `MoETransformer`; those that do not fit together are a `ValueError`.

    dim: features, in `heads` slices. experts: of `hidden` features between gate and down. top_k: experts a token.
    questions: readouts, of `classes` each. sharpness: of attention; the logit of a head's own kind.
    """

    dim: int = 32
    heads: int = 4
    experts: int = 8
    hidden: int = 16
    top_k: int = 2
    questions: int = 4
    classes: int = 8
    sharpness: float = 12.0

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim // self.heads < 2:
            raise ValueError(f"dim {self.dim} does not divide into {self.heads} slices of 2 features or more")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k: 1 .. {self.experts} experts, not {self.top_k}")


class MoETransformer(nn.Module):
    """Attention over tokens [batch, length, dim], the last of which asks, then experts, then logits of the answer.

    output: [dim, dim], orthogonal: attention's output projection, by which the heads write to features. The identity
    leaves head h's result in slice h. readout: [questions * classes, dim], the head's weight.
    """

    def __init__(self, config: MoEConfig, output: Tensor, readout: Tensor) -> None:
        super().__init__()
        self.attention = GivenAttention(config, output)
        self.norm = nn.RMSNorm(config.dim, elementwise_affine=False)
        self.moe = MoE(config)
        self.questions = config.questions
        self.head = nn.Linear(config.dim, config.questions * config.classes, bias=False)
        self.head.weight.data.copy_(readout)
        for part in (self.attention, self.head):
            part.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, questions, classes]."""
        x = self.attention(tokens)
        return self.head(x + self.moe(self.norm(x))).unflatten(-1, (self.questions, -1))


class GivenAttention(nn.Module):
    """Multi-head attention of the last token to the others [batch, length, dim], of which result is [batch, dim].

    The first feature of each slice says whether a token is of the slice's kind. Keys are that feature, the query of the
    token that asks is the same for all: nothing is learned.
    """

    def __init__(self, config: MoEConfig, output: Tensor) -> None:
        super().__init__()
        self.heads, self.sharpness = config.heads, config.sharpness
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.o_proj.weight.data.copy_(output)

    def forward(self, tokens: Tensor) -> Tensor:
        slices = tokens.unflatten(-1, (self.heads, -1))
        mixed = torch.einsum("blh,blhc->bhc", (self.sharpness * slices[..., 0]).softmax(1), slices)
        out: Tensor = self.o_proj(mixed.flatten(1))
        return out


class MoE(nn.Module):
    """softmax, top-k, gates that sum to 1, and gated experts: y [tokens, dim] of x [tokens, dim]."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.router = nn.Linear(config.dim, config.experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(config.experts, 2 * config.hidden, config.dim))
        self.down_proj = nn.Parameter(torch.empty(config.experts, config.dim, config.hidden))
        for weight in (self.router.weight, self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        probabilities = F.softmax(self.router(x), dim=-1, dtype=torch.float)
        weights, indices = torch.topk(probabilities, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        expert = indices.reshape(-1)
        each = x.repeat_interleave(self.top_k, dim=0)
        gate, up = torch.bmm(self.gate_up_proj[expert], each.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        out = torch.bmm(self.down_proj[expert], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (out * weights.reshape(-1, 1)).view(len(x), self.top_k, -1).sum(dim=1)
