"""Bias and deviation of gradients: against noise of a known size, and against arms that must have none."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from examples.arms import Arm
from examples.corpus import load_corpus
from examples.gpt import GPTConfig
from examples.gradient_noise import Draws, Noise, draw_noise, pool
from examples.training import Trainer, TrainingConfig

CONFIG = TrainingConfig(GPTConfig(dim=32, layers=1, heads=2, context=32), steps=4, batch=2)


def estimate(reference: Tensor, draws: list[Tensor]) -> Noise:
    running = Draws()
    for draw in draws:
        running.add(draw)
    return running.noise(reference)


def synthetic(bias: float, deviation: float, draws: int, seed: int) -> Noise:
    """Of a gradient of length 1 with this relative bias and deviation."""
    generator = torch.Generator().manual_seed(seed)
    reference, offset = (torch.randn(200, 50, generator=generator) for _ in range(2))
    reference, offset = reference / reference.norm(), bias * offset / offset.norm()
    noise = [torch.randn(200, 50, generator=generator) * deviation / 100 for _ in range(draws)]  # of length deviation
    return estimate(reference, [reference + offset + one for one in noise])


@pytest.mark.parametrize(("bias", "deviation"), [(0.3, 0.1), (0.05, 0.5), (0.2, 0.0)])
def test_known_bias_and_deviation_are_found(bias: float, deviation: float) -> None:
    noise = synthetic(bias, deviation, draws=16, seed=0)
    assert noise.reference == pytest.approx(1)
    assert noise.relative_bias == pytest.approx(bias, rel=0.1)
    assert noise.relative_deviation == pytest.approx(deviation, rel=0.05)


def test_bias_has_no_share_of_the_deviation() -> None:
    """The mean of 4 draws of length 1 is 0.5 off; the estimates of the squared bias scatter around 0."""
    found = [synthetic(0.0, 1.0, draws=4, seed=seed).bias for seed in range(20)]
    assert min(found) < 0 < max(found)
    assert abs(sum(found) / len(found)) < 0.003
    assert synthetic(0.0, 1.0, draws=4, seed=min(range(20), key=lambda seed: found[seed])).relative_bias == 0


def test_equal_draws_have_exactly_no_deviation() -> None:
    draw = torch.full((3, 5), 0.1)
    assert estimate(draw, [draw] * 7) == Noise(estimate(draw, [draw] * 2).reference, 0.0, 0.0)
    assert estimate(2 * draw, [draw] * 7).relative_bias == pytest.approx(0.5)


def test_kinds_are_sums_of_squares() -> None:
    layers = {
        "layers.0.mlp.up": Noise(1.0, 0.5, 3.0),
        "layers.1.mlp.up": Noise(3.0, -0.1, 1.0),
        "layers.0.q": Noise(1, 2, 3),
    }
    assert pool(layers) == {"up": Noise(4.0, 0.4, 4.0), "q": Noise(1, 2, 3)}
    assert pool(layers)["up"].relative_bias == pytest.approx(0.1**0.5)
    assert pool(layers)["up"].relative_deviation == 1.0


def test_noise_of_real_arms() -> None:
    """With the last of one block spared nothing is rounded; plain NVFP4 has a bias and a deviation in every layer."""
    batch = next(islice(CONFIG.training_batches(load_corpus()), 1))
    plain = {"recipe": "nvfp4-plain", "codegen": "eager"}
    reference = Trainer(CONFIG, Arm("bf16", "aot_eager")).gradients(batch)
    assert len(reference) == 7
    assert reference["layers.0.attention.q_proj"].shape == (32, 32)

    def noise(options: dict[str, object]) -> dict[str, Noise]:
        arm = Arm("arm", "spectral", options)
        trainer = Trainer(CONFIG, arm)
        before = trainer.state()["model"]
        found = draw_noise(trainer, arm, batch, reference, draws=3)
        assert all(torch.equal(before[name], weight) for name, weight in trainer.state()["model"].items())
        return found

    spared = noise(plain | {"exclude": [r"^layers\.(0)\."]})
    rounded = noise(plain)
    assert spared.keys() == rounded.keys() == reference.keys()
    for name in reference:
        assert spared[name].relative_deviation == 0
        assert spared[name].relative_bias < 0.02
        assert rounded[name].relative_deviation > 0.02
        assert rounded[name].relative_bias > 0.02
