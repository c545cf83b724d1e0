"""MoE layers of transformers, tiny and random, and for each what the reference needs to know of it."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.passes.headwise.reference import Layer, glu, softmax_top_k

D, F, E, K, GROUPS = 32, 16, 4, 2, 2
_BASE = {
    "vocab_size": 64,
    "hidden_size": D,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": K,
}
_DEEPSEEK = {
    "intermediate_size": 32,
    "moe_intermediate_size": F,
    "n_routed_experts": E,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_QWEN = {"intermediate_size": 32, "moe_intermediate_size": F, "num_experts": E}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"intermediate_size": F, "num_local_experts": E}),
    "qwen2": ("Qwen2Moe", {**_QWEN, "shared_expert_intermediate_size": F}),
    "qwen3": ("Qwen3Moe", {**_QWEN, "norm_topk_prob": True, "head_dim": 16}),
    "olmoe": ("Olmoe", {"intermediate_size": F, "num_experts": E, "eos_token_id": 1}),
    "gpt-oss": ("GptOss", {"intermediate_size": F, "num_local_experts": E, "head_dim": 16}),
    "deepseek-v2": ("DeepseekV2", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek-v2, groups": (
        "DeepseekV2",
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": GROUPS, "topk_group": 1},
    ),
    "deepseek-v3": ("DeepseekV3", {**_DEEPSEEK, "n_group": GROUPS, "topk_group": 1}),
}
FAMILIES = tuple(_CONFIGS)
DISPATCHES = ("grouped_mm", "batched_mm")


def model_of(family: str, dispatch: str, **more: Any) -> nn.Module:
    """A causal language model of one layer."""
    kind, settings = _CONFIGS[family]
    config = getattr(transformers, f"{kind}Config")(**{**_BASE, **settings, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.set_experts_implementation(dispatch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "gate.weight" in name or "router.weight" in name:
                parameter.normal_(std=0.5)  # else all experts are equally good
    return model


def block_of(family: str, dispatch: str) -> nn.Module:
    """Its MoE layer."""
    return model_of(family, dispatch).model.layers[0].mlp


class Routed(nn.Module):
    """A block's routed experts alone: less what its shared experts add."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return out[0] if isinstance(out, tuple) else out


def shared(block: nn.Module, x: Tensor) -> Tensor:
    """What experts add that every token goes to."""
    if hasattr(block, "shared_experts"):
        return block.shared_experts(x)
    if hasattr(block, "shared_expert"):
        return torch.sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
    return torch.zeros_like(x)


def layer_of(family: str, block: nn.Module) -> Layer:
    """The routed part, for the reference."""
    experts = block.experts
    if family == "gpt-oss":
        router = block.router
        biases = {"router_bias": router.bias, "up_bias": experts.gate_up_proj_bias, "down_bias": experts.down_proj_bias}
        return _detached(router.weight, experts.gate_up_proj, experts.down_proj, _top_k_softmax, _clamped, **biases)
    bias = getattr(block.gate, "e_score_correction_bias", torch.zeros(E))

    def gates(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if family == "deepseek-v3":
            return _sigmoid_groups(logits, k, bias)
        if family == "deepseek-v2, groups":
            scores = logits.softmax(-1)
            return _best(scores.view(-1, GROUPS, E // GROUPS).amax(-1), scores, 0.0).topk(k)
        return softmax_top_k(logits, k, normalise=family in ("mixtral", "qwen3"))

    return _detached(block.gate.weight, experts.gate_up_proj.mT, experts.down_proj.mT, gates, glu)


def _detached(router: Tensor, up: Tensor, down: Tensor, gates: Any, act: Any, **biases: Tensor) -> Layer:
    return Layer(router.detach(), up.detach(), down.detach(), gates, act, **{k: v.detach() for k, v in biases.items()})


def _top_k_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = logits.topk(k)
    return values.softmax(-1), indices


def _sigmoid_groups(logits: Tensor, k: int, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    choice = scores + bias
    groups = choice.view(-1, GROUPS, E // GROUPS).topk(2)[0].sum(-1)
    indices = _best(groups, choice, float("-inf")).topk(k)[1]
    weights = scores.gather(1, indices)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, indices


def _best(groups: Tensor, scores: Tensor, other: float) -> Tensor:
    """Scores of the best group; `other` elsewhere."""
    inside = torch.zeros_like(groups).scatter(1, groups.topk(1)[1], 1).bool()
    return scores.masked_fill(~inside.repeat_interleave(E // GROUPS, dim=1), other)


def _clamped(hidden: Tensor) -> Tensor:
    gate, up = hidden[..., ::2].clamp(max=7.0), hidden[..., 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)
