"""Models of `transformers`, untouched: one graph, no graph break, falling loss. Through Inductor, as a user would."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from spectral_compile.pipeline import observe

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_in_four_bits(name):
    torch._dynamo.reset()
    counters.clear()
    plans = []
    stop = observe(lambda stage, graph, plan: plans.append(plan) if stage == "joint" else None)
    torch.manual_seed(0)
    model = MODELS[name]()
    keys = model.state_dict().keys()
    with torch._inductor.config.patch(force_disable_caches=True):  # on a warm cache no pass runs, no plan is made
        model.compile(backend="spectral")
        losses = train(model, steps=20)
    stop()

    assert losses[-1] < 0.6 * losses[0]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert model.state_dict().keys() == keys
    (plan,) = plans
    assert len(plan.quantized) == 2 * 7 * 3  # layers, linears, products
    left_alone = {row.layer: row.reason for row in plan.rows if not row.quantized}
    assert "output head" in left_alone.pop("lm_head")
    assert all("attention" in reason for reason in left_alone.values())


def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(0, 128, (4, 32), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
