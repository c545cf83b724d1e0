"""Recipes through Inductor: `none` is Inductor to the bit, `identity` to rounding, others agree with eager codegen."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import spectral_compile
from spectral_compile import MeanCenter, Operand, QuantizeFP4, pipeline
from spectral_compile.report.saved import saved_bytes
from tests.integration.models import TinyLM, gradients, loss_and_gradients, tokens


def quantizer(**settings):
    """Without randomness, so that two runs can be compared."""
    return QuantizeFP4(gradients=Operand(rounding="nearest"), **settings)


NEAREST = quantizer()


def difference(ours, reference):
    return max(((ours[n] - g).norm() / g.norm()).item() for n, g in reference.items())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyLM(dim=48)


@pytest.fixture(scope="module")
def inductor(model):
    return loss_and_gradients(model, tokens(), backend="inductor")


def test_recipe_none_is_inductor_to_the_bit(model, inductor):
    loss, grads = loss_and_gradients(model, tokens(), backend="spectral", options={"recipe": "none"})
    assert torch.equal(loss, inductor[0])
    assert grads.keys() == inductor[1].keys()
    for name, gradient in inductor[1].items():
        assert torch.equal(grads[name], gradient), name


def test_the_environment_can_switch_us_off(model, inductor, monkeypatch):
    monkeypatch.setenv("SPECTRAL_DISABLE", "1")
    loss, grads = loss_and_gradients(model, tokens(), backend="spectral")
    assert torch.equal(loss, inductor[0])
    assert all(torch.equal(grads[name], gradient) for name, gradient in inductor[1].items())


def test_recipe_identity_agrees_with_inductor_to_rounding(model, inductor):
    loss, grads = loss_and_gradients(model, tokens(), backend="spectral", options={"recipe": "identity"})
    assert torch.allclose(loss, inductor[0], rtol=1e-6)
    assert difference(grads, inductor[1]) < 2e-6


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "nvfp4-plain", "passes": [NEAREST]},
        {"recipe": "averis+hadamard", "passes": [NEAREST]},
        {"recipe": "averis-mxfp4", "passes": [quantizer(format="mxfp4")]},
        {"recipe": "averis", "passes": [NEAREST, MeanCenter(mode="paper")]},
    ],
    ids=str,
)
def test_inductor_and_eager_codegen_compute_the_same(model, options):
    """Same codes and scales; sums in another order. One flipped tie would show as 1e-3 or more."""
    loss, grads = loss_and_gradients(model, tokens(), backend="spectral", options=options)
    loss_eager, eager = loss_and_gradients(model, tokens(), backend="spectral", options={**options, "codegen": "eager"})
    assert torch.allclose(loss, loss_eager, rtol=1e-6)
    assert difference(grads, eager) < 1e-5


def test_a_dynamic_number_of_tokens_computes_the_same_through_inductor_as_eagerly():
    torch.manual_seed(0)
    model = TinyLM(blocks=1)
    results = {}
    for codegen in ("inductor", "eager"):
        torch._dynamo.reset()
        options = {"recipe": "averis+hadamard", "passes": [NEAREST], "codegen": codegen}
        step = torch.compile(model, backend="spectral", options=options)
        for batch in (4, 6, 1):  # the second makes it dynamic; 16 tokens are too few to centre
            model.zero_grad()
            step(tokens(batch)).backward()
            results[codegen, batch] = gradients(model)
    for batch in (4, 6, 1):
        assert difference(results["inductor", batch], results["eager", batch]) < 1e-5


def test_a_checkpointed_region_that_draws_at_random_trains():
    """The partitioner saves the generator's state by operators that have no value in their metadata."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))
    compiled = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False).sin(), backend="spectral")
    output = compiled(torch.ones(64, 32))
    output.square().sum().backward()
    assert 0.3 < (output == 0).float().mean() < 0.7
    assert model[0].weight.grad.isfinite().all()


def test_modes_and_inductor_options_reach_inductor(model, inductor):
    options = {"recipe": "identity", "inductor": {"cpp.simdlen": 0}}
    loss, grads = loss_and_gradients(model, tokens(), backend="spectral", options=options)
    assert torch.allclose(loss, inductor[0], rtol=1e-6)
    assert difference(grads, inductor[1]) < 2e-6
    with pytest.raises(Exception, match=r"unknown option of .inductor. .no_such_option."):
        loss_and_gradients(model, tokens(), backend="spectral", options={"inductor": {"no_such_option": 1}})


def test_packed_codes_are_saved_in_place_of_activations():
    """The bytes that the partitioned graphs keep for backward, against Inductor's in bf16."""
    torch.manual_seed(0)
    model = TinyLM(dim=128)
    x = tokens(16, 64)
    kept = {}
    for name, arguments in {
        "bf16": {"backend": "inductor"},
        "averis": {"backend": "spectral", "options": {"recipe": "averis"}},
    }.items():
        torch._dynamo.reset()
        step = torch.compile(model, **arguments)

        def forward(step=step):
            with torch.autocast("cpu", torch.bfloat16):
                return step(x)

        forward().backward()
        kept[name] = saved_bytes(forward, leave_out=[model, x])
    # The inputs of gate and up (one tensor) and of down, 128 and 256 features of bf16 a token and block, are kept as
    # codes: 4.5 bits an element instead of 16. What else is kept (norms, the gate's own operands) stays.
    tokens_kept = 16 * 64
    replaced = 2 * tokens_kept * (128 + 256) * (2 - 4.5 / 8)
    weights = sum(p.numel() for n, p in model.named_parameters() if "blocks" in n and p.dim() == 2) * 4.5 / 8 / 16 * 16
    assert kept["averis"] < kept["bf16"]
    assert kept["bf16"] - kept["averis"] > 0.8 * (replaced - weights)


def test_the_carriers_rewrite_changes_no_bit(model, monkeypatch):
    """With stochastic rounding, in fp32: of bf16 results, Inductor drops the roundings in between."""
    results = []
    for rewrite in (True, False):
        if not rewrite:
            monkeypatch.setattr(pipeline, "to_carriers", lambda graph: None)
            monkeypatch.setattr(pipeline.PassManager, "uuid", lambda self: None)  # else the cache knows the graph
        spectral_compile.manual_seed(7)
        results.append(loss_and_gradients(model, tokens(), backend="spectral", options={"recipe": "averis"}))
    spectral_compile.manual_seed(None)
    (loss, grads), (expected_loss, expected) = results
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(grads[name], gradient), name
