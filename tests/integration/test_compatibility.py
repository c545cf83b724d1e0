"""What docs/compatibility.md says of torch's features that no other test is about. Run operator by operator."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.integration.models import Block, TinyLM, gradients, tokens

IDENTITY = {"codegen": "eager", "recipe": "identity"}  # everything rewritten, nothing rounded
PLAIN = {"codegen": "eager", "recipe": "nvfp4-plain"}


class Stack(nn.Module):
    """Three blocks, whose calls `around` may wrap."""

    def __init__(self, around=lambda block, x: block(x)):
        super().__init__()
        self.blocks, self.around = nn.ModuleList(Block(32) for _ in range(3)), around

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.around(block, x)
        return x.square().mean()


def assert_same_gradients(model: nn.Module, reference: nn.Module, *inputs: Tensor) -> None:
    reference.load_state_dict(model.state_dict())
    for one in (model, reference):
        one.zero_grad()
        one(*inputs).backward()
    exact, ours = gradients(reference), gradients(model)
    assert ours.keys() == exact.keys()
    for name, gradient in exact.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def in_four_bits(plans) -> int:
    return sum(len(plan.quantized) for plan in plans)


def test_graph_breaks_cut_the_model_and_lose_no_product(plans):
    def broken(block, x):
        torch._dynamo.graph_break()
        return block(x)

    model = Stack(broken)
    model.compile(backend="spectral", options=IDENTITY)
    assert_same_gradients(model, Stack(), torch.randn(64, 32))
    assert len(plans) > 1
    assert {row.layer for plan in plans for row in plan.quantized} == {"gate", "up", "down"}
    assert all(row.quantized for plan in plans for row in plan.rows)


def test_blocks_compiled_one_by_one_share_their_code(plans):
    model = Stack()
    for block in model.blocks:
        block.compile(backend="spectral", options=IDENTITY)
    assert_same_gradients(model, Stack(), torch.randn(64, 32))
    assert [len(plan.quantized) for plan in plans] == [9, 9]  # one whose input asks for no gradient, and all others


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_compiled_blocks_inside_a_checkpoint_that_is_not(use_reentrant):
    around = lambda block, x: checkpoint(block, x, use_reentrant=use_reentrant)  # noqa: E731
    model = Stack(around)
    for block in model.blocks:
        block.compile(backend="spectral", options=IDENTITY)
    assert_same_gradients(model, Stack(), torch.randn(64, 32, requires_grad=True))


def test_fp16_autocast_with_a_gradient_scaler(plans):
    model = TinyLM()
    model.compile(backend="spectral", options=PLAIN)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu")
    losses = []
    for step in range(20):
        with torch.autocast("cpu", torch.float16):
            loss = model(tokens(seed=step))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert {row.dtype for row in plans[0].quantized} == {"float16"}


class LowRank(nn.Module):
    """A frozen linear with a trained low-rank correction, as `peft` makes it of each linear."""

    def __init__(self, base: nn.Linear, rank: int = 4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LowRankModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = LowRank(nn.Linear(32, 64)), LowRank(nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x))).square().mean()


def test_low_rank_adapters_train_and_frozen_weights_have_no_wgrad(plans):
    model = LowRankModel()
    model.compile(backend="spectral", options=IDENTITY)
    assert_same_gradients(model, LowRankModel(), torch.randn(64, 32))
    rows = {(row.layer, row.role) for row in plans[0].quantized}
    assert {("second.base", "fprop"), ("second.base", "dgrad"), ("second.down", "wgrad")} <= rows
    assert not any(layer.endswith("base") and role == "wgrad" for layer, role in rows)


@pytest.mark.parametrize("is_parameter", [True, False])
def test_a_mask_that_is_a_parameter_leaves_a_weight_a_weight(plans, is_parameter):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))
            mask = (torch.rand(32, 32) > 0.5).float()
            if is_parameter:
                self.mask = nn.Parameter(mask, requires_grad=False)
            else:
                self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask)

    torch.compile(Masked(), backend="spectral", options=PLAIN)(torch.randn(64, 32)).norm().backward()
    fprop, wgrad = plans[0].rows
    assert fprop.quantized is wgrad.quantized is is_parameter
    assert is_parameter or fprop.reason.startswith("neither operand is computed from parameters alone")


def test_parameters_handed_over_by_functional_call(plans):
    model, other = TinyLM(), TinyLM()
    call = torch.compile(torch.func.functional_call, backend="spectral", options=IDENTITY)
    ours = call(model, dict(other.named_parameters()), (tokens(),))
    assert torch.allclose(ours, other(tokens()), rtol=1e-5)
    ours.backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert in_four_bits(plans) == 18


def test_an_exported_program_is_the_model_without_the_backend():
    model = TinyLM().eval()
    model.compile(backend="spectral", options=PLAIN)
    exported = torch.export.export(model, (tokens(),))
    assert not any("spectral" in str(node.target) for node in exported.graph.nodes)
    assert torch.allclose(exported.module()(tokens()), model.forward(tokens()), rtol=1e-6)


def test_a_copy_is_not_compiled_and_a_compiled_models_checkpoint_is_the_models():
    model = TinyLM()
    model.compile(backend="spectral", options=PLAIN)
    optimizer = torch.optim.AdamW(model.parameters())
    quantised = model(tokens())
    quantised.backward()
    optimizer.step()
    average = copy.deepcopy(model)  # as for a moving average of the weights
    again = TinyLM()
    again.load_state_dict(model.state_dict())
    torch.optim.AdamW(again.parameters()).load_state_dict(optimizer.state_dict())
    assert torch.equal(average(tokens()), again(tokens()))
    assert not torch.equal(model(tokens()), again(tokens()))


def test_a_second_derivative_is_refused_by_torch():
    model = TinyLM(blocks=1)
    model.compile(backend="spectral", options=IDENTITY)
    (gradient,) = torch.autograd.grad(model(tokens()), [model.blocks[0].up.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.square().sum().backward()
