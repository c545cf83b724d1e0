"""What four-bit rounding does to the gradients of the weights: the bias and the deviation, apart.

On one batch the rounding is drawn many times. The mean over draws is off bf16's gradient by the bias: what rounding to
nearest does, above all forward. Single draws scatter around the mean by the deviation, the work of stochastic rounding,
which averages out over steps as a bias does not. bf16's gradient is no exact one either: its elements alone are rounded
by up to 2^-8, so that a bias of a few thousandths may be bf16's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from examples.arms import Arm
from examples.mean_share import kind_of
from examples.training import Batch, Trainer


@dataclass(frozen=True)
class Noise:
    """Sums of squares over a gradient's elements, which add up over layers.

    reference: of the gradient without noise. bias: of the expectation's distance from it, an unbiased estimate and so
    perhaps slightly below 0. variance: of a draw around the expectation.
    """

    reference: float
    bias: float
    variance: float

    def __add__(self, other: "Noise") -> "Noise":
        return Noise(self.reference + other.reference, self.bias + other.bias, self.variance + other.variance)

    @property
    def relative_bias(self) -> float:
        """|E g_k - g| / |g|."""
        return (max(0.0, self.bias) / self.reference) ** 0.5

    @property
    def relative_deviation(self) -> float:
        """sqrt(E |g_k - E g_k|^2) / |g|; 0 where everything is rounded to nearest."""
        return (self.variance / self.reference) ** 0.5


class Draws:
    """Running mean and sum of squared distances from it, in fp64 (Welford): equal draws give exactly no variance."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares = 0.0

    def add(self, draw: Tensor) -> None:
        draw = draw.double()
        self.count += 1
        step = draw - self.mean
        self.mean = self.mean + step / self.count
        self.squares += (step * (draw - self.mean)).sum().item()

    def noise(self, reference: Tensor) -> Noise:
        """Of at least two draws around what `reference`, of the same shape, would be without noise."""
        reference = reference.double()
        variance = self.squares / (self.count - 1)
        distance = (self.mean - reference).square().sum().item()
        # The mean of K draws is off by variance / K more than the expectation is.
        return Noise(reference.square().sum().item(), distance - variance / self.count, variance)


def draw_noise(
    trainer: Trainer, arm: Arm, batch: Batch, reference: Mapping[str, Tensor], draws: int
) -> dict[str, Noise]:
    """The noise of every layer's weight gradient, with rounding seeds 0 .. draws - 1 on the one batch."""
    kept = {name: Draws() for name in reference}
    for seed in range(draws):
        arm.seed_rounding(seed)
        for name, gradient in trainer.gradients(batch).items():
            kept[name].add(gradient)
    return {name: layer.noise(reference[name]) for name, layer in kept.items()}


def pool(layers: Mapping[str, Noise]) -> dict[str, Noise]:
    """The sums over the layers of one kind."""
    kinds: dict[str, Noise] = {}
    for name, noise in layers.items():
        kind = kind_of(name)
        kinds[kind] = kinds[kind] + noise if kind in kinds else noise
    return kinds
