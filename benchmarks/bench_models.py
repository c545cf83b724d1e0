"""What the benchmark trains: a block of Llama, and a GPT of twelve layers, both in plain PyTorch.

The block's backward starts from a fixed gradient of its output, as it would in the middle of a model. A scalar loss on
top would make an output head of its last linears, and heads stay in high precision.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.gpt import GPT, VOCABULARY, Attention, GPTConfig, rotary_tables

BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BlockSizes:
    """dim, ff: features of the stream and of the feed-forward layer. A step takes batch * length tokens."""

    dim: int = 1024
    ff: int = 2816
    heads: int = 16
    batch: int = 4
    length: int = 512


@dataclass(frozen=True)
class GPTSizes:
    """As for `examples.gpt.GPTConfig`. A step takes batch * length tokens."""

    dim: int = 512
    layers: int = 12
    heads: int = 8
    batch: int = 4
    length: int = 256


@dataclass(frozen=True)
class Sizes:
    """Of both models."""

    block: BlockSizes = BlockSizes()
    gpt: GPTSizes = GPTSizes()


@dataclass(frozen=True)
class Workload:
    """model: on fp32 parameters. inputs: of its forward; those that ask for a gradient get one.

    gradient: of the output, from which the backward starts; None where the output is the loss itself.
    """

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    gradient: Tensor | None

    def tokens(self) -> int:
        return self.inputs[0].shape[0] * self.inputs[0].shape[1]


class LlamaBlock(nn.Module):
    """RMSNorm and causal attention with rotary positions, RMSNorm and SwiGLU, each added to the stream; no biases."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.dim)
        self.attention = Attention(sizes.dim, sizes.heads)
        self.mlp_norm = nn.RMSNorm(sizes.dim)
        self.gate_proj = nn.Linear(sizes.dim, sizes.ff, bias=False)
        self.up_proj = nn.Linear(sizes.dim, sizes.ff, bias=False)
        self.down_proj = nn.Linear(sizes.ff, sizes.dim, bias=False)
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rotary_tables(sizes.length, sizes.dim // sizes.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, dim], and the result."""
        x = x + self.attention(self.attention_norm(x), self.cos, self.sin)
        normed = self.mlp_norm(x)
        fed: Tensor = self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x + fed


def llama_block(sizes: Sizes) -> Workload:
    """The input asks for a gradient: without one q, k and v would have no dgrad, which blocks inside a model have."""
    own = sizes.block
    x = torch.randn(own.batch, own.length, own.dim)
    return Workload("block", LlamaBlock(own), (x.requires_grad_(),), torch.randn_like(x))


def gpt(sizes: Sizes) -> Workload:
    own = sizes.gpt
    model = GPT(GPTConfig(dim=own.dim, layers=own.layers, heads=own.heads, context=own.length))
    text = torch.randint(0, VOCABULARY, (own.batch, own.length + 1))
    return Workload("gpt", model, (text[:, :-1].contiguous(), text[:, 1:].contiguous()), None)


MODELS: Mapping[str, Callable[[Sizes], Workload]] = {"block": llama_block, "gpt": gpt}


def workload(name: str, sizes: Sizes, seed: int = 0) -> Workload:
    """The same weights and inputs for the same sizes and seed, in whatever process."""
    torch.manual_seed(seed)
    return MODELS[name](sizes)


_Sizes = TypeVar("_Sizes", BlockSizes, GPTSizes)


def changed(sizes: _Sizes, text: str) -> _Sizes:
    """Sizes with those of "dim=64,heads=2" in place of their own; ValueError for what is none."""
    names = [field.name for field in dataclasses.fields(sizes)]
    given: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{part!r} is not <size>=<number>, with a size of {', '.join(names)}")
        given[name] = int(value)
    return dataclasses.replace(sizes, **given)
