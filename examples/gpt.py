"""A byte-level GPT in the manner of Llama, in plain PyTorch: the untouched model that the demo trains.

RMSNorm before each sublayer, rotary positions, SwiGLU, causal attention, no biases, an untied output head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # one token a byte


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a `GPT`; sizes that do not fit together are a `ValueError`.

    dim: features of the residual stream. layers: blocks. heads: of attention; dim / heads is even.
    context: the longest sequence, in tokens. tied: the output head is the embedding.
    """

    dim: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 256
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")
        if self.dim // self.heads % 2:
            raise ValueError(f"dim / heads = {self.dim // self.heads} is odd: rotary positions turn pairs of features")


class GPT(nn.Module):
    """Decoder-only transformer over bytes. Llama Team, "The Llama 3 Herd of Models", 2024, in miniature."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim)
        self.lm_head = nn.Linear(config.dim, VOCABULARY, bias=False)
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rotary_tables(config.context, config.dim // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(config)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [batch, length, 256] of the token that follows each of `tokens` [batch, length].

        With `targets` [batch, length] the mean cross-entropy in nats a token instead, computed in fp32.
        """
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for block in self.layers:
            x = block(x, cos, sin)
        logits: Tensor = self.lm_head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def _initialise(self, config: GPTConfig) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What adds to the residual stream starts smaller: its variance must not grow with depth.
                shrink = (2 * config.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=0.02 * shrink)
        if config.tied:
            self.lm_head.weight = self.embedding.weight


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each on the normed stream and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.mlp_norm = nn.RMSNorm(config.dim)
        self.mlp = SwiGLU(config.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = rotate(self._split(self.q_proj(x)), cos, sin)
        k = rotate(self._split(self.k_proj(x)), cos, sin)
        v = self._split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[batch, length, dim] to [batch, heads, length, dim / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Shazeer, "GLU Variants Improve Transformer", 2020."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = -(-8 * dim // 3 // 64) * 64  # 8/3 dim: as many weights as a plain layer of 4 dim
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def rotary_tables(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_dim / 2] of position * 10000^(-2i / head_dim) (RoFormer, 2021)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(context)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, length, head_dim], each pair (i, i + head_dim / 2) turned by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)
