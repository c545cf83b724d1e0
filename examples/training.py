"""What the demo and the evidence share: a training configuration, and a model that trains.

Every arm sees the same initial weights, batches and learning rates; only the compiler backend differs.
"""

import copy
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from examples.arms import Arm
from examples.corpus import Corpus, batches
from examples.gpt import GPT, GPTConfig
from spectral_compile.report.saved import saved_bytes

Batch = tuple[Tensor, Tensor]  # tokens and targets, int64 [batch, context] each


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. A value out of range is a `ValueError`.

    steps: of the optimizer. batch: sequences a step. lr: peak learning rate. seed: of weights, batches and
    rounding. weight_decay: of the matrices. clip: largest norm of a gradient. validations: how often the
    validation loss is measured, the last step included. validation_batches: over how many batches.
    """

    model: GPTConfig = field(default_factory=GPTConfig)
    steps: int = 320
    batch: int = 8
    lr: float = 2e-3
    seed: int = 0
    weight_decay: float = 0.1
    clip: float = 1.0
    validations: int = 10
    validation_batches: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, not {self.seed}")

    def learning_rate(self, step: int) -> float:
        """Of step 0 .. steps - 1: linear warm-up over a tenth, then a cosine down to a tenth of the peak."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done))

    def validates_after(self, step: int) -> bool:
        """Whether the validation loss is measured after this step: evenly spaced, and after the last."""
        return step + 1 == self.steps or (step + 1) % max(1, self.steps // self.validations) == 0

    def training_batches(self, corpus: Corpus) -> Iterator[Batch]:
        """The endless training batches; the same for every arm."""
        return batches(corpus.train, self.batch, self.model.context, self.seed)

    def held_out_batches(self, corpus: Corpus) -> list[Batch]:
        """The validation batches; the same for every arm and every seed."""
        endless = batches(corpus.validation, self.batch, self.model.context, seed=0)
        return list(itertools.islice(endless, self.validation_batches))


class Trainer:
    """A GPT compiled for one arm: bf16 autocast over fp32 parameters, AdamW, clipped gradients."""

    def __init__(self, config: TrainingConfig, arm: Arm) -> None:
        self.config, self.arm = config, arm
        torch.compiler.reset()  # arms share the code of GPT.forward, and so Dynamo's limit on recompilations
        torch.manual_seed(config.seed)
        self.model = GPT(config.model)
        self.model.compile(backend=arm.backend, options=arm.options, fullgraph=True, dynamic=False)
        self.optimizer = _adamw(self.model, config.weight_decay)
        arm.seed_rounding(config.seed)

    def compile(self, batch: Batch) -> float:
        """Compile for training and evaluation, train nothing; the seconds that compiling took."""
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            self.model.train()
            self._loss(batch).backward()
            self.optimizer.zero_grad()
            self.validate([batch])
            seconds.append(time.perf_counter() - start)
        self.arm.seed_rounding(self.config.seed)
        return max(0.0, seconds[0] - seconds[1])

    def saved_bytes(self, batch: Batch) -> int:
        """Bytes that the compiled forward keeps for backward, parameters and the batch left out."""
        self.model.train()
        kept = saved_bytes(lambda: self._loss(batch), leave_out=[self.model, *batch])
        self.arm.seed_rounding(self.config.seed)
        return kept

    def step(self, batch: Batch, lr: float) -> float:
        """One optimizer step at learning rate `lr`; the training loss before it."""
        self.model.train()
        loss = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the blocks' matrices on one batch, unclipped and by layer path; nothing is trained.

        Each fp32 [out features, in features]. The head and the embedding are not in a block.
        """
        self.model.train()
        modules = self.model.layers.named_modules(prefix="layers")
        weights = {name: module.weight for name, module in modules if isinstance(module, nn.Linear)}
        found = torch.autograd.grad(self._loss(batch), list(weights.values()))
        return dict(zip(weights, found, strict=True))

    @torch.no_grad()
    def validate(self, held_out: list[Batch]) -> float:
        """Mean loss over the batches by the same compiled model, in nats a byte."""
        self.model.eval()
        return sum(self._loss(batch).item() for batch in held_out) / len(held_out)

    def state(self) -> dict[str, Any]:
        """A copy of weights and optimizer state, for `restore` of this or another arm's trainer."""
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which stays as it is; nothing is compiled again."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # or it updates ours

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = self.model(*batch)
        return loss


def _adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
