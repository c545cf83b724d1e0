"""How much of each linear layer's input, and of its output's gradient, is the token mean, which mean removal takes."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples.gpt import GPT, GPTConfig
from examples.training import Batch


@dataclass(frozen=True)
class MeanShare:
    """Of one layer's input X [tokens, features], and of its output's gradient, with token mean mu [features].

    input, gradient: R = |mu| / sqrt(E|X|^2 / N) of "The Curse and Blessing of Mean Bias in FP4-Quantized LLM
    Training" (Averis). |X| is read as the Frobenius norm and N as the number of tokens: the denominator is the
    root mean square length of a token's vector, R lies in 0 .. 1, and R^2 is the share of the energy that is in
    the rank-one matrix 1 mu.
    """

    name: str
    input: float
    gradient: float


def to_deviation(share: float) -> float:
    """|mu| over the length of the per-feature standard deviations: R / sqrt(1 - R^2); 0 .. infinity."""
    rest = 1 - share**2
    return share / rest**0.5 if rest > 0 else float("inf")


def mean_shares(config: GPTConfig, weights: Mapping[str, Any], batches: Sequence[Batch]) -> list[MeanShare]:
    """The means' shares at every linear layer of a GPT with these weights, over all the tokens.

    Runs a model of its own, eagerly and in fp32: hooks on a compiled model would make it compile again.
    """
    model = GPT(config)
    model.load_state_dict(weights)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inputs, gradients = {name: Moments() for name in names}, {name: Moments() for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(partial(_record, inputs[name], gradients[name]))
    for tokens, targets in batches:
        model(tokens, targets).backward()
    return [MeanShare(name, inputs[name].share(), gradients[name].share()) for name in names]


def pool(shares: Sequence[MeanShare]) -> dict[str, MeanShare]:
    """By kind of layer: the root mean square of R over the blocks.

    So a kind's R^2 is the mean share of energy in a block, whatever the blocks' scales: FP4's scales follow them.
    """
    kinds: dict[str, list[MeanShare]] = {}
    for share in shares:
        kinds.setdefault(kind_of(share.name), []).append(share)
    return {
        kind: MeanShare(kind, _root_mean_square(s.input for s in same), _root_mean_square(s.gradient for s in same))
        for kind, same in kinds.items()
    }


def kind_of(layer: str) -> str:
    """What a layer is called in every block: "q_proj" of "layers.0.attention.q_proj"."""
    return layer.rpartition(".")[2]


class Moments:
    """Running sums over tokens, in fp64: the vectors, their squared lengths, their number."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.energy = 0.0
        self.count = 0

    def add(self, x: Tensor) -> None:
        """x [..., features]: every leading index is a token."""
        x = x.detach().flatten(0, -2).double()
        self.total = self.total + x.sum(0)
        self.energy += x.square().sum().item()
        self.count += len(x)

    def share(self) -> float:
        mean = torch.as_tensor(self.total) / self.count
        return mean.norm().item() / (self.energy / self.count) ** 0.5


def _record(forward: Moments, backward: Moments, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    forward.add(inputs[0])
    output.register_hook(backward.add)


def _root_mean_square(values: Iterable[float]) -> float:
    return statistics.fmean(value**2 for value in values) ** 0.5
