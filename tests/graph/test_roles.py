"""Heads and routers, told by what the graph does with their result."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture import Capture, capture

LOSS = "output head: its result goes into the loss"
ROUTER = "router: its result is ranked (top-k)"


class Net(nn.Module):
    """Two hidden linears and `finish`, a function of the model and what they computed."""

    def __init__(
        self, finish: Callable[..., Any], tied: bool = False, embeds: bool = True, **layers: nn.Module
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.last = nn.Linear(16, 32, bias=False)
        for name, layer in layers.items():
            setattr(self, name, layer)
        if tied:
            self.last.weight = self.embed.weight
        self.finish, self.embeds = finish, embeds

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens) if self.embeds else torch.sin(tokens[:, None] * torch.arange(16))
        return self.finish(self, x + self.down(torch.relu(self.up(x))), tokens)


def reasons(model: nn.Module, **options: Any) -> dict[str, str]:
    return run(model, **options).reasons


def run(model: nn.Module, **options: Any) -> Capture:
    return capture(model, torch.arange(32), **options)


def softcapped(s: Any, x: Tensor, tokens: Tensor) -> Tensor:
    logits = torch.tanh(s.last(x) * 0.5 / 30) * 30
    return F.cross_entropy(logits[:-1].float(), tokens[1:])


def counted(s: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    logits = s.last(x)
    right = (logits.argmax(-1) == tokens).float()
    return F.cross_entropy(logits, tokens), right


@pytest.mark.parametrize(
    "finish",
    [
        lambda s, x, tokens: F.cross_entropy(s.last(x), tokens),
        lambda s, x, tokens: F.cross_entropy(s.last(x)[None].flatten(0, 1), tokens, label_smoothing=0.1),
        lambda s, x, tokens: F.mse_loss(s.last(x), torch.ones(32, 32)),
        lambda s, x, tokens: F.binary_cross_entropy_with_logits(s.last(x), torch.ones(32, 32)),
        lambda s, x, tokens: s.last(x).sum(),
        lambda s, x, tokens: s.last(x).square().mean(),
        softcapped,
        counted,
    ],
    ids=["cross_entropy", "smoothed", "mse", "bce", "sum", "mean_square", "softcap", "accuracy_beside"],
)
def test_what_goes_into_the_loss_is_a_head_and_nothing_else_is(finish: Callable[..., Any]) -> None:
    model = Net(finish)
    assert reasons(model, loss=lambda out: out[0] if isinstance(out, tuple) else out) == {"last": LOSS}


def test_a_heads_backward_products_follow_it() -> None:
    rows = run(Net(lambda s, x, tokens: F.cross_entropy(s.last(x), tokens))).plan.rows
    assert [row.role for row in rows if row.reason == LOSS] == ["fprop", "wgrad", "dgrad"]


def test_logits_that_leave_the_graph_belong_to_a_head_by_their_layers_name() -> None:
    model = Net(lambda s, x, tokens: s.lm_head(x), embeds=False, lm_head=nn.Linear(16, 32))
    assert reasons(model) == {"lm_head": "output head: its result leaves the graph and it is called 'lm_head'"}


def test_logits_that_leave_the_graph_belong_to_a_head_by_the_embeddings_weight() -> None:
    model = Net(lambda s, x, tokens: (s.last(x), s.down(s.up(x))), tied=True)
    expected = "output head: its result leaves the graph and its weight is the embedding's"
    assert reasons(model)["last"] == expected


def test_logits_that_leave_the_graph_belong_to_a_head_as_the_last_product_of_a_graph_that_embeds() -> None:
    expected = "output head: the last product of the graph, as wide as the vocabulary that the graph embeds"
    assert reasons(Net(lambda s, x, tokens: s.last(x))) == {"last": expected}


def test_the_last_product_of_a_cut_graph_is_no_head() -> None:
    """A graph break or a DDP bucket may end after any linear; a head is as wide as the vocabulary."""
    assert reasons(Net(lambda s, x, tokens: s.narrow(x), narrow=nn.Linear(16, 24))) == {}


def test_a_logged_figure_makes_no_head_of_a_hidden_layer() -> None:
    def logged(s: Any, x: Tensor, tokens: Tensor) -> Any:
        h = s.up(x)
        return F.cross_entropy(s.last(s.down(h)), tokens), h.detach().abs().mean()

    assert reasons(Net(logged), loss=lambda out: out[0]) == {"last": LOSS}


def test_a_block_without_an_embedding_has_no_head() -> None:
    assert reasons(Net(lambda s, x, tokens: s.last(x), embeds=False)) == {}


def test_a_value_projection_returned_as_cache_is_no_head() -> None:
    def cached(s: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = s.k_proj(x), s.v_proj(x)
        attended = F.scaled_dot_product_attention(s.last(x)[None], keys[None], values[None])[0]
        return s.lm_head(attended), keys, values

    layers = {name: nn.Linear(16, 32) for name in ("k_proj", "v_proj")}
    model = Net(cached, lm_head=nn.Linear(32, 32), **layers)
    assert set(reasons(model)) == {"lm_head"}


def test_a_hidden_result_that_leaves_the_graph_mixed_with_others_is_no_head() -> None:
    assert reasons(Net(lambda s, x, tokens: x)) == {}


def test_a_hidden_linear_before_a_norm_and_another_linear_is_no_head() -> None:
    def normed(s: Any, x: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(s.last(F.layer_norm(s.hidden(x), (16,))), tokens)

    assert set(reasons(Net(normed, hidden=nn.Linear(16, 16)))) == {"last"}


def mixtral(logits: Tensor, s: Any) -> tuple[Tensor, Tensor]:
    weights, chosen = torch.topk(torch.softmax(logits, -1), 2)
    return weights / weights.sum(-1, keepdim=True), chosen


def gpt_oss(logits: Tensor, s: Any) -> tuple[Tensor, Tensor]:
    values, chosen = torch.topk(logits, 2)
    return torch.softmax(values, -1), chosen


def deepseek_v3(logits: Tensor, s: Any) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    for_choice = scores + s.correction
    groups = for_choice.view(-1, 2, 2).topk(2, dim=-1)[0].sum(-1)
    mask = torch.zeros_like(groups).scatter_(1, groups.topk(1, dim=-1)[1], 1)
    allowed = mask[:, :, None].expand(-1, 2, 2).reshape(-1, 4).bool()
    chosen = for_choice.masked_fill(~allowed, 0.0).topk(2, dim=-1)[1]
    return scores.gather(1, chosen), chosen


def switch(logits: Tensor, s: Any) -> tuple[Tensor, Tensor]:
    weights, chosen = torch.softmax(logits, -1).max(-1, keepdim=True)
    return weights, chosen


@pytest.mark.parametrize(
    ("route", "balanced"),
    [(mixtral, False), (mixtral, True), (gpt_oss, False), (deepseek_v3, True), (switch, False), (switch, True)],
)
def test_a_linear_whose_result_is_ranked_is_a_router(route: Callable[..., Any], balanced: bool) -> None:
    def finish(s: Any, x: Tensor, tokens: Tensor) -> Tensor:
        logits = s.gate(x)
        weights, chosen = route(logits, s)
        mixed = (s.last(x).view(-1, 4, 8).gather(1, chosen[..., None].expand(-1, -1, 8)) * weights[..., None]).sum(1)
        loss = F.cross_entropy(s.out(mixed), tokens)
        return loss + 0.01 * logits.logsumexp(-1).square().mean() if balanced else loss

    model = Net(finish, gate=nn.Linear(16, 4, bias=False), out=nn.Linear(8, 32))
    model.register_buffer("correction", torch.linspace(0, 1, 4))
    found = reasons(model)
    assert set(found) == {"gate", "out"}
    assert found["out"] == LOSS
    if route is switch:  # top-1 alone also counts right answers: the loss beside it decides what it is called
        assert found["gate"] == (LOSS if balanced else "router: its result is ranked (top-1)")
    else:
        assert found["gate"] == ROUTER


def _tiny(family: str) -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM

    common = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
    }
    if family == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**common, num_local_experts=4))
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 8}
    config = DeepseekV3Config(**common, **ranks, **experts, first_k_dense_replace=0, n_shared_experts=1)
    return DeepseekV3ForCausalLM(config)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_router_head_and_experts_of_transformers_models(family: str) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _tiny(family)
            self.model.set_experts_implementation("grouped_mm")

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(tokens, labels=tokens, use_cache=False).loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = capture(Trained(), torch.arange(16)[None])
    layer = "model.model.layers.0"
    assert captured.reasons == {f"{layer}.mlp.gate": ROUTER, "model.lm_head": LOSS}
    quantized = {row.layer for row in captured.plan.quantized}
    assert f"{layer}.self_attn.o_proj" in quantized
    experts = [row for row in captured.plan.rows if row.layer.startswith(f"{layer}.mlp.experts.")]
    stacks = [row.layer.rpartition(".")[2] for row in experts if row.quantized and row.experts == "4"]
    assert sorted(stacks) == ["down_proj"] * 3 + ["gate_up_proj"] * 3
