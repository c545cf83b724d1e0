"""Bytes saved for backward: exact counts on graphs small enough to count by hand."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from spectral_compile.report.saved import saved_bytes


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class MLP(nn.Module):
    """8 -> 16 -> 8 features with a tanh between; backward needs x, tanh's output and the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


INPUT = 4 * 8 * 4  # x [4, 8] in fp32
HIDDEN = 4 * 16 * 4  # tanh's output [4, 16]: saved by tanh and by `down`, one storage
WEIGHTS = 2 * 8 * 16 * 4


def test_eager_counts_each_storage_once() -> None:
    model, x = MLP(), torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(lambda: model(x)) == INPUT + HIDDEN + WEIGHTS
    assert saved_bytes(lambda: model(x), leave_out=[model]) == INPUT + HIDDEN
    assert saved_bytes(lambda: model(x), leave_out=[model, x]) == HIDDEN


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled_counts_what_aot_autograd_saves(backend: str) -> None:
    model, x = MLP(), torch.randn(4, 8, requires_grad=True)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(x)
    assert saved_bytes(lambda: compiled(x), leave_out=[model]) == INPUT + HIDDEN
    assert saved_bytes(lambda: compiled(x), leave_out=[compiled, x]) == HIDDEN


def test_counts_while_compiling_too() -> None:
    model, x = MLP(), torch.randn(4, 8, requires_grad=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert saved_bytes(lambda: compiled(x), leave_out=[model, x]) == HIDDEN


def test_counting_neither_recompiles_nor_changes_gradients() -> None:
    model, x = MLP(), torch.randn(4, 8, requires_grad=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    outputs: list[Tensor] = []

    def forward() -> None:
        outputs.append(compiled(x))

    saved_bytes(forward)
    outputs.pop().sum().backward()  # backward through a counted graph
    assert all(
        torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), expected, strict=True) if p.grad is not None
    )
    assert len(expected) == 2
    model.zero_grad()
    compiled(x).sum().backward()
    assert counter.frame_count == 1


def test_autocast_copies_of_weights_count() -> None:
    model, x = MLP(), torch.randn(4, 8)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    # x, the hidden layer and the weight of `down`, in bf16; x needs no gradient, so `up` keeps no copy.
    assert saved_bytes(forward, leave_out=[model, x]) == INPUT // 2 + HIDDEN // 2 + WEIGHTS // 4


def test_a_view_keeps_and_counts_its_whole_storage_once() -> None:
    base = torch.randn(100)
    scale = torch.ones(10, requires_grad=True)
    assert saved_bytes(lambda: (base[:10] * scale, base[50:60] * scale), leave_out=[scale]) == 400


def test_what_was_freed_again_does_not_count() -> None:
    weight = torch.ones(10, requires_grad=True)

    def forward() -> Tensor:
        (torch.randn(10) * weight).exp()  # a branch that nobody keeps
        return torch.randn(10) * weight

    assert saved_bytes(forward, leave_out=[weight]) == 40


def test_checkpointing_counts_what_is_held() -> None:
    model, x = MLP(), torch.randn(4, 8, requires_grad=True)
    held = saved_bytes(lambda: checkpoint(model, x, use_reentrant=False), leave_out=[model])
    assert held == INPUT


def test_buffers_are_left_out_and_nothing_is_saved_without_grad() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(10), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.table

    model, x = Table(), torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: model(x)) == 40
    assert saved_bytes(lambda: model(x), leave_out=[model]) == 0
    with torch.no_grad():
        assert saved_bytes(lambda: model(x)) == 0
