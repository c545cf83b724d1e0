"""What each arm computes, against the equations of its mode; and the choices that it is said to make."""

import pytest
import torch

from examples.continual_moe import arm_model, sizes_of, start
from examples.factor_tasks import tasks_of
from examples.headwise import MODES, chosen
from examples.moe import MoE, MoEConfig
from tests.passes.headwise.reference import Layer, glu, headwise, softmax_top_k


@pytest.mark.parametrize("mode", MODES)
def test_an_arm_computes_what_its_mode_says(mode):
    model, forward = arm_model(mode, "eager")
    model.load_state_dict(start("values", "mixed", mode, seed=1))
    batch = tasks_of("values", "mixed", tasks=4, dim=32, factors=4, classes=8, seed=1)
    tokens = batch.train(0, 16, torch.Generator()).tokens
    with torch.no_grad():
        x, moe = model.attention(tokens), model.moe
        layer = Layer(moe.router.weight, moe.gate_up_proj.mT, moe.down_proj.mT, softmax_top_k, glu)
        y = headwise(layer, model.norm(x), mode, 4, 2, 2, scale=2.0)
        torch.testing.assert_close(forward(tokens).flatten(1), model.head(x + y), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(forward(tokens), model(tokens), atol=0.1)


def test_runs_share_one_compile_and_bring_their_own_weights():
    model, forward = arm_model("subtoken", "eager")
    tokens = torch.randn(16, 5, 32)
    results = []
    for seed in (1, 2, 1):
        model.load_state_dict(start("values", "aligned", "subtoken", seed))
        results.append(forward(tokens).detach())
    assert torch.equal(results[0], results[2])
    assert not torch.allclose(results[0], results[1])
    assert arm_model("subtoken", "eager")[0] is model


@pytest.mark.parametrize("top_k", [2, 4])
def test_the_plain_layer_is_its_equation(top_k):
    torch.manual_seed(0)
    moe, x = MoE(MoEConfig(top_k=top_k)), torch.randn(9, 32)
    with torch.no_grad():
        layer = Layer(moe.router.weight, moe.gate_up_proj.mT, moe.down_proj.mT, softmax_top_k, glu)
        y = headwise(layer, x, "subtoken", 1, top_k, top_k, scale=1.0)
        torch.testing.assert_close(moe(x), y, rtol=1e-4, atol=1e-5)


def test_choices_are_those_of_the_largest_gates():
    torch.manual_seed(0)
    x, router = torch.randn(9, 12), torch.randn(5, 12)
    plain = chosen(x, router, top_k=2, heads=1, mode="original")
    assert torch.equal(plain, (x @ router.T).topk(2).indices)
    apart = chosen(x, router, top_k=2, heads=3, mode="bank")
    gates = torch.zeros(9, 5)
    for head in range(3):
        columns = slice(4 * head, 4 * head + 4)
        weights, indices = softmax_top_k(3**0.5 * x[:, columns] @ router[:, columns].T, 2)
        assert torch.equal(apart[:, head], indices)
        gates += torch.zeros(9, 5).scatter(1, indices, weights)
    assert torch.equal(chosen(x, router, top_k=2, heads=3, mode="vote"), gates.topk(2).indices)


def test_sizes():
    assert sizes_of("top-4").top_k == 2 * sizes_of("original").top_k == 2 * sizes_of("subtoken").top_k
    with pytest.raises(ValueError, match="does not divide"):
        MoEConfig(dim=30)
    with pytest.raises(ValueError, match="top_k"):
        MoEConfig(top_k=9)
