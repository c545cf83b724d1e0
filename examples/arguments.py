"""The command line that the demo and the evidence have in common."""

import argparse
from pathlib import Path
from typing import NoReturn

from examples.gpt import GPTConfig
from examples.training import TrainingConfig

DEFAULT = TrainingConfig()


class Parser(argparse.ArgumentParser):
    """Arguments of a training run; whatever is wrong with them is one line on stderr and exit code 2."""

    def __init__(self, description: str, out: str) -> None:
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self.add_argument("--steps", type=int, default=DEFAULT.steps, help="optimizer steps")
        self.add_argument("--dim", type=int, default=DEFAULT.model.dim, help="features of the residual stream")
        self.add_argument("--layers", type=int, default=DEFAULT.model.layers, help="transformer blocks")
        self.add_argument("--heads", type=int, default=DEFAULT.model.heads, help="attention heads")
        self.add_argument("--context", type=int, default=DEFAULT.model.context, help="bytes a sequence")
        self.add_argument("--batch", type=int, default=DEFAULT.batch, help="sequences a step")
        self.add_argument("--lr", type=float, default=DEFAULT.lr, help="peak learning rate")
        self.add_argument("--seed", type=int, default=DEFAULT.seed, help="of weights, batches and rounding")
        self.add_argument(
            "--arms",
            default="bf16,nvfp4-plain,averis",
            help="bf16, recipes of the spectral backend, <recipe>/last-<n>: with the last n blocks in high precision",
        )
        self.add_argument("--out", type=Path, default=Path(out), help="folder for the results")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def training_config(args: argparse.Namespace) -> TrainingConfig:
    """The run that the arguments describe; `ValueError` where they do not fit together."""
    model = GPTConfig(dim=args.dim, layers=args.layers, heads=args.heads, context=args.context)
    return TrainingConfig(model=model, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
