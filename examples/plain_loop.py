"""A training loop in plain PyTorch, and its checkpoint in a model without the backend: `python -m examples.plain_loop`.

The model is examples/gpt.py, which knows nothing of four bits; yours takes its place, and your data that of the corpus.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import spectral_compile as spectral  # only to ask what would be quantised: the backend is found by its name
from examples.corpus import batches, load_corpus
from examples.gpt import GPT, GPTConfig
from examples.stand_ins import Parser, in_four_bits

Batch = tuple[Tensor, Tensor]  # tokens and targets, int64 [batch, context]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, load into a model that is not compiled; the losses on the way."""
    args = Parser("A plain training loop in four bits.", steps=100).parse_args(arguments)
    torch.manual_seed(0)
    corpus, sizes = load_corpus(), GPTConfig(dim=128, layers=2, heads=4, context=128)
    training = batches(corpus.train, batch=8, context=sizes.context, seed=0)
    held_out = list(itertools.islice(batches(corpus.validation, batch=8, context=sizes.context, seed=0), 4))

    model = GPT(sizes)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        print(in_four_bits(spectral.explain(model, *next(training), options=args.options)))
    model.compile(backend="spectral", options=args.options)  # the only line that changes
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)

    losses = []
    for step, batch in enumerate(itertools.islice(training, args.steps)):
        losses.append(train_step(model, optimizer, batch))
        if step % 20 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}")
    print(f"training loss {losses[0]:.3f} before, {losses[-1]:.3f} after {args.steps} steps")

    # A compiled model's checkpoint is that of the model: it goes on in any precision, on any backend.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        checkpoint = torch.load(file)
    plain = GPT(sizes)
    plain.load_state_dict(checkpoint["model"])
    validation = validate(plain, held_out)
    print(f"validation loss {validation:.3f} of the checkpoint in bf16, without the backend")
    return {"before": losses[0], "after": losses[-1], "validation": validation}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One step: fp32 parameters, bf16 autocast, clipped gradients. Nothing here is about four bits."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def validate(model: nn.Module, held_out: list[Batch]) -> float:
    """Mean loss in nats a byte. (Of a compiled model it would be in four bits too: see the option `inference`.)"""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        return sum(float(model(*batch)) for batch in held_out) / len(held_out)


if __name__ == "__main__":
    main()
