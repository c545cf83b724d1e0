"""Every recipe trains: the loss of the demo's model falls. In miniature always, at full size with `make slow`."""

import itertools
import statistics

import pytest
import torch

from examples.corpus import load_corpus
from examples.gpt import GPTConfig
from examples.training import Arm, Trainer, TrainingConfig
from spectral_compile import RECIPES
from spectral_compile.lowering import cpu

STEPS = 50
QUANTISING = [name for name in RECIPES if name not in ("none", "identity")]
MINIATURE = TrainingConfig(model=GPTConfig(dim=64, layers=2, heads=2, context=64), steps=STEPS, batch=4)


def losses(config, options):
    """Training losses, step by step."""
    trainer = Trainer(config, Arm(options["recipe"], "spectral", options))
    batches = itertools.islice(config.training_batches(load_corpus()), config.steps)
    return [trainer.step(batch, config.learning_rate(step)) for step, batch in enumerate(batches)]


def assert_falling(curve):
    """From the uniform guess, ln 256 = 5.55, to well below what byte frequencies alone give, and still falling."""
    assert all(map(torch.isfinite, map(torch.tensor, curve)))
    thirds = [statistics.fmean(curve[i : i + len(curve) // 3]) for i in (0, len(curve) // 3, 2 * len(curve) // 3)]
    assert thirds[0] > thirds[1] > thirds[2]
    assert thirds[2] < curve[0] - 1.5


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    cpu.prepare()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operators: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("recipe", QUANTISING)
def test_in_miniature(recipe):
    assert_falling(losses(MINIATURE, {"recipe": recipe, "codegen": "eager"}))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", QUANTISING)
def test_the_demos_model_through_inductor(recipe):
    assert_falling(losses(TrainingConfig(steps=STEPS), {"recipe": recipe}))
