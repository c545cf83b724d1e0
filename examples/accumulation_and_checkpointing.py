"""Gradient accumulation with activation checkpointing: `python -m examples.accumulation_and_checkpointing`.

A step sees 16 sequences in 4 parts, and each block of the model is computed again in the backward. With `--compare` the
same model sees the same sequences at once and without checkpoints: the losses differ only by how four bits round, since
each part has scales and random numbers of its own; the memory differs much.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spectral_compile as spectral
from examples.corpus import batches, load_corpus
from examples.gpt import GPT, Block, GPTConfig
from examples.stand_ins import CONTEXT, Parser, in_four_bits
from spectral_compile.report.saved import saved_bytes

Batch = tuple[Tensor, Tensor]  # tokens and targets, int64 [sequences, context]

SEQUENCES = 16  # a step
PARTS = 4


class CheckpointedBlock(Block):
    """A block that keeps its input for the backward, and nothing else."""

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().forward, *inputs, use_reentrant=False)
        return out


class CheckpointedGPT(GPT):
    """The same model, with the same parameters under the same names."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(CheckpointedBlock(config) for _ in range(config.layers))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train; the losses of the first and the last step, and the bytes that one forward keeps for its backward."""
    parser = Parser("Accumulation and checkpointing in four bits.", steps=40)
    parser.add_argument("--compare", action="store_true", help="train without either, too: as long again")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    sizes = GPTConfig(dim=128, layers=2, heads=4, context=CONTEXT)
    at_once, in_parts = GPT(sizes), CheckpointedGPT(sizes)
    in_parts.load_state_dict(at_once.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        print(in_four_bits(spectral.explain(at_once, *next(parts_of_steps(PARTS)), options=args.options)))

    found = run("in parts", in_parts, PARTS, args.steps, args.options)
    return found | run("at once", at_once, 1, args.steps, args.options) if args.compare else found


def run(name: str, model: nn.Module, parts: int, steps: int, options: dict[str, Any]) -> dict[str, float]:
    """Compile and train one model."""
    model.compile(backend="spectral", options=options, dynamic=False)  # the only line that changes
    first = next(parts_of_steps(parts))
    kept = saved_bytes(lambda: forward(model, first), [model, *first])
    losses = train(model, parts, steps)
    fell = f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after {steps} steps"
    print(f"{name}: {fell}; {kept / 2**20:.1f} MiB saved for a backward")
    return {f"{name}, before": losses[0], f"{name}, after": losses[-1], f"{name}, saved": kept}


def train(model: nn.Module, parts: int, steps: int) -> list[float]:
    """The loss of each step, whose gradient is the mean over so many parts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = parts_of_steps(parts)
    losses = []
    for _ in range(steps):
        losses.append(0.0)
        for batch in itertools.islice(batches, parts):
            loss = forward(model, batch) / parts
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The loss under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(*batch)
    return loss


def parts_of_steps(parts: int) -> Iterator[Batch]:
    """Endless batches: those of one step after another, each in so many parts. The same sequences for any number."""
    for tokens, targets in batches(load_corpus().train, SEQUENCES, CONTEXT, seed=0):
        yield from zip(tokens.chunk(parts), targets.chunk(parts), strict=True)


if __name__ == "__main__":
    main()
