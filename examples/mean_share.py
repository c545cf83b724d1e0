"""How much of each linear layer's input is its mean over tokens: the part that mean removal takes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples.gpt import GPT, GPTConfig
from examples.training import Batch


@dataclass(frozen=True)
class MeanShare:
    """Of one layer's input X [tokens, features] with token mean mu [features].

    share: R = |mu| / sqrt(E|X|^2 / N) of "The Curse and Blessing of Mean Bias in FP4-Quantized LLM Training"
    (Averis). |X| is read as the Frobenius norm and N as the number of tokens: the denominator is the root
    mean square length of a token's vector, R lies in 0 .. 1, and R^2 is the share of the input's energy that
    is in the rank-one matrix 1 mu.
    """

    name: str
    share: float

    @property
    def to_deviation(self) -> float:
        """|mu| over the length of the per-feature standard deviations: R / sqrt(1 - R^2); 0 .. infinity."""
        rest = 1 - self.share**2
        return self.share / rest**0.5 if rest > 0 else float("inf")


def mean_shares(config: GPTConfig, weights: Mapping[str, Any], batches: Sequence[Batch]) -> list[MeanShare]:
    """The mean's share in the input of every linear layer of a GPT with these weights, over all the tokens.

    Runs a model of its own, eagerly and in fp32: hooks on a compiled model would make it compile again.
    """
    model = GPT(config)
    model.load_state_dict(weights)
    moments = {name: Moments() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, moment in moments.items():
        model.get_submodule(name).register_forward_pre_hook(partial(_record, moment))
    with torch.no_grad():
        for tokens, _ in batches:
            model(tokens)
    return [MeanShare(name, moment.share()) for name, moment in moments.items()]


class Moments:
    """Running sums over tokens, in fp64: the vectors, their squared lengths, their number."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.energy = 0.0
        self.count = 0

    def add(self, x: Tensor) -> None:
        """x [..., features]: every leading index is a token."""
        x = x.flatten(0, -2).double()
        self.total = self.total + x.sum(0)
        self.energy += x.square().sum().item()
        self.count += len(x)

    def share(self) -> float:
        mean = torch.as_tensor(self.total) / self.count
        return mean.norm().item() / (self.energy / self.count) ** 0.5


def _record(moments: Moments, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    moments.add(inputs[0])
