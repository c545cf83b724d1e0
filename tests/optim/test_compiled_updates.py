"""Updates that are themselves compiled: an optimizer's step, a whole train step, and updates written by hand."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

import spectral_compile as spectral
from spectral_compile.backend import spectral as backend
from spectral_compile.optim import smoothed, smoothing_of

EVERY = spectral.WeightSmoothing(every=1)
QUICK = spectral.WeightSmoothing(warmup=3, cooldown=2)
HIDDEN = ["up.weight", "down.weight"]
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, foreach=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=True),
    "adamw, one by one": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=False),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.norm = nn.Linear(12, 20), nn.Linear(20, 8, bias=False), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.down(self.up(x).relu())).sin().sum()


def options(*passes):
    return {"recipe": "none", "codegen": "eager", "passes": list(passes)}


def batch(seed=0):
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def graphs(monkeypatch):
    """Operators of each graph that the backend gets while a step is compiled."""
    seen = []

    def spy(gm, inputs, **said):
        seen.append(Counter(getattr(node.target, "__name__", str(node.target)) for node in gm.graph.nodes))
        return backend(gm, inputs, **said)

    return seen, spy


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_is_one_graph_in_place_and_smooths_once(name, graphs):
    seen, spy = graphs
    model, plain = Model(), Model()
    model.compile(backend="spectral", options=options(EVERY))
    optimizer, reference = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
    step = torch.compile(optimizer.step, backend=lambda gm, inputs: spy(gm, inputs, options=options(EVERY)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the step's own options add nothing, and nothing is missed
        for number in range(3):
            model(batch(number)).backward()
            step()
            optimizer.zero_grad()
            plain(batch(number)).backward()
            reference.step()
            reference.zero_grad()
            for weight in HIDDEN:
                parameter = plain.get_parameter(weight)
                parameter.data = smoothed(parameter.data).weight
    assert [(at, list(changes)) for at, changes in smoothing_of(optimizer).log] == [(n, HIDDEN) for n in range(3)]
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(seen) == (2 if name == "sgd" else 1)  # SGD makes its momentum in the first step
    assert all(any(operator.rstrip("_") != operator for operator in graph) for graph in seen)
    assert not any("linear" in operator or operator == "mm" for graph in seen for operator in graph)


def test_a_compiled_step_after_a_large_gradient_is_smoothed_one_step_late_and_once():
    model = Model()
    model.compile(backend="spectral", options=options(QUICK))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step = torch.compile(optimizer.step, backend="spectral", options=options())
    for size in (1, 1, 1, 1, 5, 1, 1, 1):
        (size * model(batch())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # which the trigger does not see
        step()
        optimizer.zero_grad()
    assert [at for at, _ in smoothing_of(optimizer).log] == [5]


def test_a_fused_step_is_no_graph_and_is_smoothed_too(graphs):
    seen, spy = graphs
    model = Model()
    model.compile(backend="spectral", options=options(EVERY))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step = torch.compile(optimizer.step, backend=spy)
    model(batch()).backward()
    step()
    assert not seen
    assert [list(changes) for _, changes in smoothing_of(optimizer).log] == [HIDDEN]


@pytest.mark.parametrize("compiled_autograd", [False, True])
def test_a_whole_train_step_breaks_into_graphs_and_is_smoothed_once_a_step(compiled_autograd, graphs):
    seen, spy = graphs
    model, plain = Model(), Model()
    optimizer, reference = (OPTIMIZERS["adamw"](m.parameters()) for m in (model, plain))

    def train(x):
        loss = model(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    with torch._dynamo.config.patch(compiled_autograd=compiled_autograd):
        compiled = torch.compile(train, backend=lambda gm, inputs: spy(gm, inputs, options=options(EVERY)))
        for number in range(3):
            compiled(batch(number))
            plain(batch(number)).backward()
            reference.step()
            reference.zero_grad()
            for weight in HIDDEN:
                parameter = plain.get_parameter(weight)
                parameter.data = smoothed(parameter.data).weight
    assert [(at, list(changes)) for at, changes in smoothing_of(optimizer).log] == [(n, HIDDEN) for n in range(3)]
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(seen) == (3 if compiled_autograd else 2)  # forward, (backward,) step


def test_smoothing_asked_of_the_step_alone_is_refused_with_a_warning():
    model = Model()  # eager: nobody has said which of its parameters are hidden matrices
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    before = copy.deepcopy(model.state_dict())
    model(batch()).backward()
    with pytest.warns(UserWarning, match="no effect on a compiled optimizer step by itself"):
        torch.compile(optimizer.step, backend="spectral", options=options(EVERY))()
    assert not smoothing_of(optimizer).log
    assert not torch.equal(model.up.weight, before["up.weight"])  # it stepped all the same


@pytest.mark.parametrize("how", ["in place", "augmented", "foreach", "data"])
def test_an_update_by_hand_is_taken_unsmoothed_and_with_a_warning(how):
    model = Model()
    params = list(model.parameters())

    @torch.compile(backend="spectral", options=options(EVERY))
    def train(x):
        gradients = torch.autograd.grad(model(x), params)
        with torch.no_grad():
            if how == "foreach":
                torch._foreach_add_(params, gradients, alpha=-0.1)
            for parameter, gradient in zip(params, gradients, strict=True):
                if how == "in place":
                    parameter.sub_(0.1 * gradient)
                elif how == "augmented":
                    parameter -= 0.1 * gradient
                elif how == "data":
                    parameter.data.sub_(0.1 * gradient)

    expected = [p - 0.1 * g for p, g in zip(params, torch.autograd.grad(model(batch()), params), strict=True)]
    with pytest.warns(UserWarning, match="that compiled code updates without a torch.optim.Optimizer"):
        train(batch())
    for one, other in zip(params, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_averages_of_weights_are_no_updates():
    model = Model()
    average = copy.deepcopy(model).requires_grad_(False)

    @torch.compile(backend="spectral", options=options(EVERY))
    @torch.no_grad()
    def follow():
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 0.1)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        follow()
