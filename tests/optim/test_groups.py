"""Which parameter gets which role."""

import pytest
import torch
from torch import nn

from spectral_compile.optim import Spectra, Split, parameter_groups
from tests.integration.models import TinyLM, tokens


def roles(model, **arguments):
    return {row.names[0]: row.role for row in parameter_groups(model, **arguments).rows}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 16, 8))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 16))
        self.down_proj = nn.Parameter(torch.randn(4, 8, 8))


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = Experts()


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.position = nn.Parameter(torch.zeros(1, 16, 8))
        self.qkv = nn.Linear(8, 24)
        self.gate = nn.Linear(8, 16)  # of a SwiGLU: no router
        self.mlp = Mixture()
        self.attention = nn.MultiheadAttention(8, 2)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.last = nn.Linear(8, 32, bias=False)


def test_roles_are_read_from_the_modules():
    assert roles(Everything()) == {
        "embedding.weight": "embedding",
        "position": "other",
        "qkv.weight": "hidden",
        "qkv.bias": "bias",
        "gate.weight": "hidden",
        "gate.bias": "bias",
        "mlp.gate.weight": "router",
        "mlp.experts.gate_up_proj": "experts",
        "mlp.experts.gate_up_proj_bias": "bias",
        "mlp.experts.down_proj": "experts",
        "attention.in_proj_weight": "hidden",
        "attention.in_proj_bias": "bias",
        "attention.out_proj.weight": "hidden",
        "attention.out_proj.bias": "bias",
        "conv.weight": "other",
        "conv.bias": "bias",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "scale": "other",
        "last.weight": "head",
    }


def test_tied_weights_come_once_and_are_embeddings():
    grouping = parameter_groups(TinyLM(tied=True))
    tied = grouping.rows[0]
    assert tied.names == ("embedding.weight", "lm_head.weight")
    assert (tied.role, tied.method) == ("embedding", "adamw")
    assert roles(TinyLM())["lm_head.weight"] == "head"


def test_groups_are_what_the_optimizer_takes():
    model = TinyLM()
    optimizer = Spectra(parameter_groups(model), lr=0.01, weight_decay=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays["blocks.0.norm.weight"] == decays["blocks.0.down.bias"] == 0
    assert decays["blocks.0.down.weight"] == decays["embedding.weight"] == 0.1
    model(tokens()).backward()
    optimizer.step()
    assert set(optimizer.state[model.blocks[0].up.weight]) == {"M", "V"}
    assert "exp_avg" in optimizer.state[model.lm_head.weight]


def test_the_table_says_what_went_where_and_why():
    printed = str(parameter_groups(Everything(), split={"qkv": 3}))
    assert "6 of 20 tensors are hidden matrices" in printed
    for line in (
        ("qkv.weight", "24 x 8", "spectra, in parts 8 + 8 + 8", "weight of Linear"),
        ("attention.in_proj_weight", "spectra, in parts 8 + 8 + 8"),
        ("mlp.experts.gate_up_proj ", "4 x 16 x 8", "looks fused: consider split="),
        ("position", "its use is not known"),
        ("last.weight", "head", "the last linear, as wide as the vocabulary"),
    ):
        assert any(all(part in row for part in line) for row in printed.splitlines()), line


def test_what_is_said_comes_first():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert roles(model)["2.weight"] == "hidden"
    assert roles(model, roles={r"^2\.weight$": "head"})["2.weight"] == "head"


def test_splits_are_parts_or_sizes():
    model = Everything()

    def split(value):
        rows = parameter_groups(model, split={"mlp.experts.gate_up_proj$": value}).rows
        return next(row.split for row in rows if row.names[0] == "mlp.experts.gate_up_proj")

    assert split(2) == split((8, 8)) == Split((8, 8), -2)
    assert split(Split((5, 3), -1)) == Split((5, 3), -1)


def test_gpt2_stores_its_linears_transposed():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=32, n_positions=8)
    grouping = parameter_groups(transformers.GPT2LMHeadModel(config), split={"c_attn": 3})
    fused = next(row for row in grouping.rows if row.names[0].endswith("c_attn.weight"))
    assert fused.shape == (8, 24)
    assert fused.split == Split((8, 8, 8), -1)
    assert grouping.rows[0].role == "embedding"
    assert len(grouping.rows[0].names) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roles": {"nothing": "head"}}, "no trainable parameter's name matches 'nothing'; names are like 'position'"),
        ({"split": {"q_proj": 3}}, "no trainable parameter's name matches 'q_proj'"),
        ({"roles": {"qkv": "haed"}}, "unknown role 'haed' .did you mean 'head'"),
        ({"roles": {"position": "hidden"}}, r"'position' of shape \[1, 16, 8\] cannot have the role 'hidden'"),
        ({"split": {"qkv": 7}}, r"'qkv.weight': a split into .* does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(Everything(), **arguments)
