"""Mixture-of-experts models of `transformers`, untouched: experts in four bits, routers and heads not."""

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from spectral_compile.pipeline import observe
from spectral_compile.plan import Plan
from tests.capture import capture, compiled_eagerly, gradients

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
RANKS = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK = {**RANKS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16}
DEEPSEEK |= {"first_k_dense_replace": 0, "n_shared_experts": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral with its auxiliary loss": ("Mixtral", {"num_local_experts": 4, "output_router_logits": True}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16}),
    "olmoe": ("Olmoe", {"num_experts": 4}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "head_dim": 16}),
    "deepseek_v2": ("DeepseekV2", DEEPSEEK),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
}


class Trained(nn.Module):
    """Returns the loss of predicting its input."""

    def __init__(self, family: str, dtype: torch.dtype, implementation: str = "grouped_mm") -> None:
        super().__init__()
        name, settings = FAMILIES[family]
        config = getattr(transformers, f"{name}Config")(**SIZES, **settings)
        self.model = getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)
        self.model.set_experts_implementation(implementation)

    def forward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.model(tokens, labels=tokens, use_cache=False).loss
        return loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_with_experts_in_four_bits(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 32, (2, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Trained(family, dtype)
        model(tokens)  # an eager call: with router logits asked for, a first compiled one is in two graphs
        plans: list[Plan] = []
        stop = observe(lambda stage, graph, plan: plans.append(plan) if stage == "joint" else None)
        compiled = compiled_eagerly(model)
        losses = []
        for _ in range(2):
            run = gradients(compiled, model, tokens)
            losses.append(float(run.output.detach()))
            with torch.no_grad():
                for name, gradient in run.gradients.items():
                    assert gradient.isfinite().all(), name
                    model.get_parameter(name).sub_(gradient, alpha=0.5)
        stop()
    assert losses[1] < losses[0]
    (plan,) = plans
    experts = [row for row in plan.rows if row.experts]
    assert {row.experts for row in experts} == {"4"}
    assert all(row.quantized for row in experts)
    stacks = {row.layer.rpartition(".")[2] for row in experts}
    assert stacks == {"gate_up_proj", "down_proj"}
    assert sorted(row.role for row in experts) == ["dgrad"] * 2 + ["fprop"] * 2 + ["wgrad"] * 2
    routers = {row.layer for row in plan.rows if row.reason.startswith("router")}
    assert len(routers) == 1
    assert all(not row.quantized for row in plan.rows if row.layer in routers or row.layer.endswith("lm_head"))


def test_batched_products_say_which_implementation_is_quantised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = capture(Trained("mixtral", torch.bfloat16, "batched_mm"), torch.arange(16)[None])
    reasons = [row.reason for row in captured.plan.rows if row.layer.endswith("experts")]
    assert reasons
    assert all('set_experts_implementation("grouped_mm")' in reason for reason in reasons)
