"""The mean's share in what flows into a layer and back from it."""

import pytest
import torch

from examples.gpt import GPT, GPTConfig
from examples.mean_share import MeanShare, Moments, mean_shares, pool, to_deviation


def test_mean_share_of_a_known_input() -> None:
    moments = Moments()
    for _ in range(2):
        moments.add(torch.tensor([[[3.0, 1.0], [3.0, -1.0]]]))  # mean (3, 0), deviations (0, 1)
    assert moments.share() == pytest.approx((9 / 10) ** 0.5)
    assert to_deviation(moments.share()) == pytest.approx(3)


def test_mean_shares_of_a_model() -> None:
    config = GPTConfig(dim=16, layers=1, heads=2, context=8)
    torch.manual_seed(0)
    weights = GPT(config).state_dict()
    tokens, targets = torch.randint(256, (2, 2, 8))
    shares = mean_shares(config, weights, [(tokens, targets)])
    assert len(shares) == 8  # q, k, v, o, gate, up, down and the head
    assert shares[-1].name == "lm_head"
    assert all(0 < share < 1 for layer in shares for share in (layer.input, layer.gradient))


def test_one_token_everywhere_is_its_own_mean() -> None:
    config = GPTConfig(dim=16, layers=1, heads=2, context=8)
    torch.manual_seed(0)
    same = torch.full((2, 8), 65)
    shares = {layer.name: layer for layer in mean_shares(config, GPT(config).state_dict(), [(same, same)])}
    first, head = shares["layers.0.attention.q_proj"], shares["lm_head"]
    assert first.input == pytest.approx(1.0, abs=1e-6)
    assert to_deviation(first.input) > 1e3
    assert head.gradient == pytest.approx(1.0, abs=1e-6)  # the same logits and target for each token


def test_kinds_pool_the_energy_of_their_blocks() -> None:
    layers = [
        MeanShare("layers.0.mlp.up", 0.6, 0.1),
        MeanShare("layers.1.mlp.up", 0.8, 0.1),
        MeanShare("head", 0.5, 0.5),
    ]
    pooled = pool(layers)
    assert pooled["up"].input == pytest.approx(0.5**0.5)
    assert pooled["up"].gradient == pytest.approx(0.1)
    assert pooled["head"] == MeanShare("head", 0.5, 0.5)
