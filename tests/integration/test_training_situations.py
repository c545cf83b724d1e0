"""What real training programs do, with the rewritten graph run operator by operator."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import spectral_compile
from tests.integration.models import TinyLM, gradients, loss_and_gradients, tokens

EAGER = {"codegen": "eager"}


def compiled(model, **options):
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(model, backend="spectral", fullgraph=True, options={**EAGER, **options})


def close(a, b, tolerance):
    return (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("recipe", ["nvfp4-plain", "averis"])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_loss_falls(recipe, autocast):
    model = TinyLM()
    step = compiled(model, recipe=recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for i in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = step(tokens(seed=i))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert counters["stats"]["unique_graphs"] == 1


def test_bf16_parameters_train_in_bf16_and_stay_near_the_unquantised_gradients(plans):
    model = TinyLM().bfloat16()
    _, exact = loss_and_gradients(model, tokens(), backend="aot_eager")
    _, rounded = loss_and_gradients(model, tokens(), backend="spectral", options={**EAGER, "recipe": "averis"})
    assert all(row.dtype == "bfloat16" for row in plans[0].quantized)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.bfloat16
        assert close(rounded[name].float(), gradient.float(), 0.4), name
        if "gate" in name:
            assert not torch.equal(rounded[name], gradient), "nothing was quantised"


def test_batch_sizes_may_change_from_step_to_step(plans):
    model = TinyLM()
    step = compiled(model, recipe="identity")
    for batch in (4, 6, 3, 8, 5):
        model.zero_grad()
        step(tokens(batch)).backward()
        ours = gradients(model)
        model.zero_grad()
        model(tokens(batch)).backward()
        for name, gradient in gradients(model).items():
            assert close(ours[name], gradient, 1e-5), (batch, name)
    assert len(plans) == 2  # one static graph, then one for every size


def test_few_tokens_are_not_centred_even_where_the_graph_does_not_know_their_number():
    model = TinyLM()
    step = compiled(
        model,
        recipe="averis",
        passes=[spectral_compile.QuantizeFP4(gradients=spectral_compile.Operand(rounding="nearest"))],
    )
    for batch in (4, 6):  # the second call makes the batch size dynamic
        step(tokens(batch)).backward()
    model.zero_grad()
    step(tokens(1)).backward()  # 16 tokens, below min_rows = 32
    dynamic = gradients(model)
    _, plain = loss_and_gradients(
        model,
        tokens(1),
        backend="spectral",
        options={
            **EAGER,
            "recipe": "nvfp4-plain",
            "passes": [spectral_compile.QuantizeFP4(gradients=spectral_compile.Operand(rounding="nearest"))],
        },
    )
    for name, gradient in plain.items():
        assert close(dynamic[name], gradient, 1e-5), name


def test_a_tied_embedding_stays_in_high_precision(plans):
    model = TinyLM(tied=True)
    loss_and_gradients(model, tokens(), backend="spectral", options=EAGER)
    heads = [row for row in plans[0].rows if row.layer == "lm_head"]
    assert len(heads) == 3
    assert all("output head" in row.reason for row in heads)
    assert len(plans[0].quantized) == 18


@pytest.mark.parametrize("recipe", ["identity", "averis"])
def test_frozen_layers_get_no_gradient_and_the_others_theirs(plans, recipe):
    model = TinyLM()
    model.blocks[0].requires_grad_(False)
    model.blocks[1].gate.requires_grad_(False)
    _, exact = loss_and_gradients(model, tokens(), backend="aot_eager")
    _, ours = loss_and_gradients(model, tokens(), backend="spectral", options={**EAGER, "recipe": recipe})
    assert ours.keys() == exact.keys()
    assert not any(row.role == "wgrad" and row.layer == "blocks.1.gate" for row in plans[0].rows)
    for name, gradient in exact.items():
        assert close(ours[name], gradient, 1e-5 if recipe == "identity" else 0.4), name


def test_checkpointing_changes_no_bit_of_the_gradients():
    plain, checkpointed = TinyLM(), TinyLM(checkpointed=True)
    checkpointed.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, checkpointed):
        spectral_compile.manual_seed(3)
        results.append(loss_and_gradients(model, tokens(), backend="spectral", options=EAGER))
    (loss_a, grads_a), (loss_b, grads_b) = results
    assert torch.equal(loss_a, loss_b)
    for name in grads_a:
        assert torch.equal(grads_a[name], grads_b[name]), name


def test_inference_is_quantised_by_the_same_plan_or_not_at_all_by_option(plans):
    model = TinyLM().eval()
    with torch.no_grad():
        exact = model(tokens())
        quantised = compiled(model)(tokens())
        high = compiled(model, inference="high-precision")(tokens())
    assert [len(plan.quantized) for plan in plans] == [6, 0]
    assert quantised != exact
    assert torch.allclose(high, exact, rtol=1e-6)
    assert {row.reason for row in plans[1].rows if row.layer != "lm_head"} == {"inference, by option in high precision"}
    training = compiled(model)(tokens())  # the forward under autograd rounds the very same way
    assert torch.allclose(training, quantised, rtol=1e-6)


def test_eval_before_train_and_back():
    model = TinyLM()
    step = compiled(model)
    with torch.no_grad():
        before = step(tokens())
    loss = step(tokens())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.allclose(before, loss, rtol=1e-6)


def test_the_seed_repeats_the_noise_and_a_fresh_call_renews_it():
    model = TinyLM()
    step = compiled(model)

    def one_step():
        model.zero_grad()
        step(tokens()).backward()
        return gradients(model)["blocks.0.up.weight"]

    spectral_compile.manual_seed(1)
    first, second = one_step(), one_step()
    spectral_compile.manual_seed(1)
    assert torch.equal(one_step(), first)
    assert torch.equal(one_step(), second)
    assert not torch.equal(first, second)


def test_an_evaluation_between_two_steps_does_not_change_the_noise():
    model = TinyLM()
    step = compiled(model)
    results = []
    for evaluate in (False, True):
        model.zero_grad()
        spectral_compile.manual_seed(1)
        step(tokens()).backward()
        if evaluate:
            with torch.no_grad():
                step(tokens(seed=1))
        step(tokens()).backward()
        results.append(gradients(model)["blocks.0.up.weight"])
    assert torch.equal(*results)


def test_retain_graph_repeats_the_same_noise():
    model = TinyLM()
    loss = compiled(model)(tokens())
    loss.backward(retain_graph=True)
    once = gradients(model)
    loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, 2 * once[name], rtol=1e-6), name


def test_the_users_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = copy.deepcopy(TINY)
    loss_and_gradients(model, tokens(), backend="spectral", options=EAGER)
    assert torch.equal(torch.rand(3), expected)


TINY = TinyLM(blocks=1)


def test_a_graph_without_a_linear_is_left_alone(plans):
    def function(x):
        return (x.sin() * 2).sum()

    x = torch.randn(8, requires_grad=True)
    torch.compile(function, backend="spectral", fullgraph=True, options=EAGER)(x).backward()
    assert torch.allclose(x.grad, 2 * x.detach().cos())
    assert plans == []


def test_a_compiled_optimizer_step_is_left_alone(plans):
    model, other = TinyLM(blocks=1), TinyLM(blocks=1)
    other.load_state_dict(model.state_dict())
    for m, compile_step in ((model, True), (other, False)):
        optimizer = torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], lr=1e-2)
        m(tokens()).backward()
        step = torch.compile(optimizer.step, backend="spectral", options=EAGER) if compile_step else optimizer.step
        step()
    assert not any(plan.quantized for plan in plans)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_autograds_backward_graph_is_left_alone(plans):
    model = TinyLM(blocks=1)
    step = compiled(model, recipe="identity")
    _, exact = loss_and_gradients(model, tokens(), backend="aot_eager")
    torch._dynamo.reset()
    model.zero_grad()
    backward_compiler = lambda gm: torch.compile(gm, backend="spectral", options={**EAGER, "recipe": "averis"})  # noqa: E731
    loss = step(tokens())
    before = len(plans)
    with torch._dynamo.compiled_autograd._enable(backward_compiler):
        loss.backward()
    assert len(plans) == before
    for name, gradient in gradients(model).items():
        assert close(gradient, exact[name], 1e-5), name
