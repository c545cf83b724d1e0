"""`torch.compile(optimizer.step)` does what `optimizer.step` does."""

import copy

import pytest
import torch
from torch import nn

from spectral_compile.optim import Spectra, parameter_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 12)
        self.qkv = nn.Linear(12, 36)
        self.up = nn.Linear(36, 20, bias=False)
        self.also_up = nn.Linear(36, 20, bias=False)
        self.experts = nn.ParameterDict({"w": nn.Parameter(torch.randn(2, 20, 12))})
        self.head = nn.Linear(12, 16)

    def forward(self, x):
        x = self.qkv(self.embedding(x)).tanh()
        x = (self.up(x) * self.also_up(x)).tanh() @ self.experts["w"]
        return self.head(x.sum(0)).square().mean()


def train(net, lr, backend=None, steps=4):
    optimizer = Spectra(parameter_groups(net, split={"qkv": 3}), lr=lr)
    step = optimizer.step if backend is None else torch.compile(optimizer.step, backend=backend, fullgraph=True)
    tokens = torch.arange(16)[None].expand(2, 16)
    for number in range(steps):
        if isinstance(lr, torch.Tensor):
            lr.fill_(0.01 / (1 + number))
        optimizer.zero_grad()
        net(tokens).backward()
        step()
    return net


@pytest.mark.parametrize("rate", ["a float", "a tensor"])
def test_a_compiled_step_is_the_eager_step(rate):
    net = Net()

    def lr():
        return 0.01 if rate == "a float" else torch.tensor(0.01)

    eager = train(copy.deepcopy(net), lr())
    with torch._dynamo.config.patch(error_on_recompile=True):  # the tensor changes at every step
        compiled = train(net, lr(), "aot_eager")
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_inductor():
    """Of one matrix, because Inductor's C++ takes its time."""
    weights, gradients = torch.randn(1, 12, 20), torch.randn(3, 1, 12, 20)

    def train(compiled):
        params = [nn.Parameter(w.clone()) for w in weights]
        optimizer = Spectra(params, lr=0.1, rank=0.2)
        step = torch.compile(optimizer.step, fullgraph=True) if compiled else optimizer.step
        for both in gradients:
            for parameter, gradient in zip(params, both, strict=True):
                parameter.grad = gradient.clone()
            step()
        return torch.stack([p.detach() for p in params])

    torch.testing.assert_close(train(True), train(False), rtol=1e-4, atol=1e-5)
