"""The modes of head-wise routing, as the example defines them, token by token in plain loops."""

import pytest
import torch
import torch.nn.functional as F

from examples.headwise import MODES, chosen, head_gates, headwise_moe, vote
from examples.moe import MoE, MoEConfig

CONFIG = MoEConfig(dim=12, heads=3, experts=5, hidden=4, top_k=2)


def layer(seed=0):
    torch.manual_seed(seed)
    moe = MoE(CONFIG).double()
    return torch.randn(9, CONFIG.dim, dtype=torch.float64), moe, (moe.router.weight, moe.gate_up_proj, moe.down_proj)


def chosen_gates(logits):
    """{expert: gate} of a vector of logits."""
    probabilities = logits.softmax(0)
    best = sorted(range(len(logits)), key=lambda e: -probabilities[e])[: CONFIG.top_k]
    total = sum(probabilities[e] for e in best)
    return {e: probabilities[e] / total for e in best}


def act(z):
    return F.silu(z[: CONFIG.hidden]) * z[CONFIG.hidden :]


def by_loops(x, router, gate_up, down, mode):
    heads, width = CONFIG.heads, CONFIG.dim // CONFIG.heads
    slices = [slice(h * width, (h + 1) * width) for h in range(heads)]
    y = torch.zeros_like(x)
    for t, token in enumerate(x):
        routes = [chosen_gates(heads**0.5 * router[:, s] @ token[s]) for s in slices]
        mean = torch.stack([sum(g.get(e, 0 * token[0]) for g in routes) / heads for e in range(CONFIG.experts)])
        if mode == "vote":
            best = mean.topk(CONFIG.top_k).indices.tolist()
            for e in best:
                y[t] += mean[e] * (down[e] @ act(gate_up[e] @ token))
        elif mode == "mask":
            for e in range(CONFIG.experts):
                seen = torch.cat([token[s] * (e in g) for s, g in zip(slices, routes, strict=True)])
                y[t] += mean[e] * (down[e] @ act(gate_up[e] @ seen))
        else:
            for s, g in zip(slices, routes, strict=True):
                for e, gate in g.items():
                    hidden = act(gate_up[e][:, s] @ token[s])
                    if mode == "bank":
                        y[t] += gate * (down[e] @ hidden)
                    else:
                        y[t, s] += gate * (down[e][s] @ hidden)
    return y


@pytest.mark.parametrize("mode", MODES)
def test_by_loops(mode):
    x, _, weights = layer()
    with torch.no_grad():
        found = headwise_moe(x, *weights, top_k=CONFIG.top_k, heads=CONFIG.heads, mode=mode)
        torch.testing.assert_close(found, by_loops(x, *weights, mode))


@pytest.mark.parametrize("mode", MODES)
def test_one_head_is_the_plain_layer(mode):
    x, moe, weights = layer()
    # the plain layer asks for a softmax in fp32
    torch.testing.assert_close(
        headwise_moe(x, *weights, top_k=CONFIG.top_k, heads=1, mode=mode), moe(x), rtol=1e-6, atol=1e-6
    )


def test_mask_and_vote_are_the_plain_layer_where_heads_agree():
    x, moe, (router, *experts) = layer()
    x = x[:, :4].repeat(1, 3)
    alike = router[:, :4].repeat(1, 3)
    moe.router.weight.data = alike / 3**0.5  # whose logits are then those that each head has
    for mode, equal in [("mask", True), ("vote", True), ("subtoken", False), ("bank", False)]:
        y = headwise_moe(x, alike, *experts, top_k=CONFIG.top_k, heads=3, mode=mode)
        assert torch.allclose(y, moe(x), atol=1e-6) == equal, mode


def test_subtoken_keeps_slices_apart():
    x, _, weights = layer()
    settings = {"top_k": CONFIG.top_k, "heads": CONFIG.heads}
    changed = x.clone()
    changed[:, 4:8] += 1
    before, after = (headwise_moe(z, *weights, **settings, mode="subtoken").unflatten(1, (3, 4)) for z in (x, changed))
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]], rtol=0, atol=0)
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_chosen_are_those_with_gates():
    x, _, (router, *_) = layer()
    g = head_gates(x, router, 2, 3)
    apart = chosen(x, router, top_k=2, heads=3, mode="bank")
    assert apart.shape == (9, 3, 2)
    assert (g.gather(-1, apart) > 0).all()
    together = chosen(x, router, top_k=2, heads=3, mode="vote")
    assert together.shape == (9, 2)
    assert (vote(g, 2).gather(-1, together) > 0).all()
    assert torch.equal(chosen(x, router, top_k=2, heads=1, mode="original"), (x @ router.T).topk(2, dim=-1).indices)


def test_bad_input():
    x, _, weights = layer()
    with pytest.raises(ValueError, match="modes are subtoken, bank, mask, vote"):
        headwise_moe(x, *weights, top_k=2, heads=3, mode="tokens")
    with pytest.raises(ValueError, match="12 features do not divide into 5 slices"):
        headwise_moe(x, *weights, top_k=2, heads=5, mode="bank")
    with pytest.raises(ValueError, match="does not divide"):
        MoEConfig(dim=30)
    with pytest.raises(ValueError, match="top_k"):
        MoEConfig(top_k=9)
