"""Tiny models that the integration tests train."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Pre-norm residual MLP with a gate: three linears, one with a bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim, bias=False)
        self.up = nn.Linear(dim, 2 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class TinyLM(nn.Module):
    """Embedding, blocks, head, loss: tokens [batch, length] -> loss."""

    def __init__(self, dim: int = 32, blocks: int = 2, tied: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.lm_head = nn.Linear(dim, 64, bias=False)
        self.checkpointed = checkpointed
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return F.cross_entropy(self.lm_head(x)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def tokens(batch: int = 4, length: int = 16, seed: int = 0) -> Tensor:
    """Token ids [batch, length] with a pattern that can be learnt: each is its predecessor plus 3, modulo 64."""
    start = torch.randint(0, 64, (batch, 1), generator=torch.Generator().manual_seed(seed))
    return (start + 3 * torch.arange(length)) % 64


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter's gradient."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(
    model: nn.Module, *inputs: Tensor, **compile_arguments: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward and backward of a freshly compiled model."""
    torch._dynamo.reset()
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True, **compile_arguments)(*inputs)
    loss.backward()
    return loss.detach(), gradients(model)
