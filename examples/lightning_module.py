"""A Lightning module in four bits: `python -m examples.lightning_module`.

The network inside the module is compiled, not the module: Lightning calls `training_step`, which `module.compile(...)`
does not reach, and `torch.compile(module)` traces into `self.log`, where torch 2.13 fails whatever the backend.
"""

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import spectral_compile as spectral
from examples.corpus import load_corpus
from examples.stand_ins import Parser, Windows, in_four_bits, tiny_llama


class LanguageModel(lightning.LightningModule):
    """Any network that returns its loss, trained by AdamW."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.network(**batch).loss
        self.log("training_loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train; the losses of the first and the last step."""
    args = Parser("A Lightning module in four bits.", steps=60).parse_args(arguments)
    lightning.seed_everything(0, verbose=False)
    network = tiny_llama()
    training = DataLoader(Windows(load_corpus().train), batch_size=16, shuffle=True)

    with torch.autocast("cpu", torch.bfloat16):  # as with precision="bf16-mixed" below
        print(in_four_bits(spectral.explain(network, **next(iter(training)), options=args.options)))
    network.compile(backend="spectral", options=args.options)  # the only line that changes

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=args.steps,
        enable_checkpointing=False,
        **quiet,
    )
    module = LanguageModel(network)
    trainer.fit(module, training)
    losses = module.losses
    print(f"training loss {losses[0]:.3f} before, {losses[-1]:.3f} after {args.steps} steps")
    return {"before": losses[0], "after": losses[-1]}


if __name__ == "__main__":
    main()
