"""Smoothing as the optimizer steps."""

import pytest
import torch
from torch import nn

from spectral_compile.optim import Smoother, Smoothing, Spectra, Trigger, parameter_groups, smoothed
from tests.integration.models import TinyLM, tokens

QUICK = Trigger(warmup=3, cooldown=2)


def linear():
    torch.manual_seed(0)
    return nn.Linear(12, 16)


def step(model, optimizer, size=1.0, scaler=None, clip=None):
    optimizer.zero_grad()
    loss = size * model(torch.ones(4, 12)).sum()
    (loss if scaler is None else scaler.scale(loss)).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_it_acts_one_step_after_a_large_gradient_clipped_or_not(clip):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    smoother = Smoother(parameter_groups(model), Smoothing(cap=0.05), QUICK)
    for size in (1, 1, 1, 1, 5):
        step(model, optimizer, size, clip=clip)
    assert not smoother.log
    before = model.weight.detach().clone()
    step(model, optimizer, clip=clip)
    ((at, changes),) = smoother.log
    assert at == 5
    assert list(changes) == ["weight"]
    assert 0 < changes["weight"] <= 0.0501
    assert ((model.weight - before).norm() / before.norm()).item() == pytest.approx(changes["weight"].item(), rel=0.1)
    smoother.remove()


def test_what_is_done_is_what_smoothed_says():
    model, plain = linear(), linear()
    first, second = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    smoother = Smoother(parameter_groups(model), every=2)
    for number in range(4):
        step(model, first)
        step(plain, second)
        if number % 2:
            plain.weight.data = smoothed(plain.weight.data).weight
        assert torch.equal(model.weight, plain.weight)
    assert [at for at, _ in smoother.log] == [1, 3]
    smoother.remove()
    step(model, first)
    step(model, first)
    assert len(smoother.log) == 2


def test_accumulated_gradients_are_one_step():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    smoother = Smoother(parameter_groups(model), trigger=QUICK)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(4):
            model(torch.ones(4, 12)).sum().backward()
        optimizer.step()
    assert smoother.state.steps == 3
    torch.testing.assert_close(
        smoother.state.average, torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    )  # of the sum
    smoother.remove()


def test_what_a_scaler_skips_does_not_count_and_its_scale_is_not_a_gradient():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=4.0, growth_interval=5)
    smoother = Smoother(parameter_groups(model), trigger=QUICK, scale=scaler.get_scale)
    for number in range(8):
        step(model, optimizer, float("inf") if number == 6 else 1.0, scaler)
    assert smoother.steps == smoother.state.steps == 7
    assert smoother.state.average.item() == pytest.approx(4 * (16 * 12 + 16) ** 0.5)  # every gradient is 4
    assert smoother.state.fired == 0
    smoother.remove()


def test_nan_smooths_nothing():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    smoother = Smoother(parameter_groups(model), trigger=QUICK)
    for size in (1, 1, 1, 1, float("nan"), 1, 1):
        step(model, optimizer, size)
    assert not smoother.log
    assert smoother.state.steps == 6
    smoother.remove()


def test_several_optimizers_share_a_step_and_others_are_left_alone():
    model, other = TinyLM(), linear()
    grouping = parameter_groups(model, split={"gate": 2})
    matrices = {row.parameter for row in grouping.matrices}
    optimizers = [
        torch.optim.SGD(matrices, lr=0.01),
        torch.optim.SGD([p for p in model.parameters() if p not in matrices], lr=0.01),
    ]
    smoother, stranger = Smoother(grouping, every=2), torch.optim.SGD(other.parameters(), lr=0.01)
    for _ in range(4):
        model(tokens()).backward()
        for optimizer in optimizers:
            optimizer.step()
        step(other, stranger)
    assert smoother.steps == 4
    assert [len(changes) for _, changes in smoother.log] == [8, 8]  # two gates in two parts, two ups, two downs
    smoother.remove()


@pytest.mark.parametrize("kind", [Spectra, torch.optim.AdamW])
def test_compiled_steps(kind):
    def train(compiled):
        torch.manual_seed(0)
        model = linear()
        grouping = parameter_groups(model)
        optimizer = kind(grouping if kind is Spectra else model.parameters(), lr=0.01)
        smoother = Smoother(grouping, every=2)
        if compiled:
            optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
        for _ in range(4):
            step(model, optimizer)
        smoother.remove()
        assert len(smoother.log) == 2
        return model.weight.detach()

    torch.testing.assert_close(train(True), train(False), rtol=1e-3, atol=1e-5)


def test_resuming_is_the_same_to_the_bit(tmp_path):
    sizes = [1, 1, 1, 1, 5, 1, 1, 1]

    def run(model, optimizer, smoother, sizes):
        for size in sizes:
            step(model, optimizer, size)
        smoother.remove()
        return model, smoother

    def fresh():
        model = linear()
        return model, torch.optim.SGD(model.parameters(), lr=0.01), Smoother(parameter_groups(model), trigger=QUICK)

    whole, _ = run(*fresh(), sizes)
    model, smoother = run(*fresh(), sizes[:5])  # it fired, and has not been read
    torch.save({"model": model.state_dict(), "smoother": smoother.state_dict()}, tmp_path / "it.pt")
    resumed = fresh()
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    resumed[0].load_state_dict(saved["model"])
    resumed[2].load_state_dict(saved["smoother"])
    run(*resumed, sizes[5:])
    assert len(resumed[2].log) == 1
    assert torch.equal(resumed[0].weight, whole.weight)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="'every' cannot be 0"):
        Smoother(parameter_groups(linear()), every=0)
    with pytest.raises(ValueError, match="none of these parameters is a hidden matrix"):
        Smoother(parameter_groups(nn.LayerNorm(4)))
