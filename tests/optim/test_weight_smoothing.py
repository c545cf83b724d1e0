"""WeightSmoothing as a pass: what is attached by a compiled graph, when it acts, and what it leaves alone."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn

import spectral_compile as spectral
from spectral_compile.config import Options
from spectral_compile.configure import Configuration
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.optim import attached, smoothed, smoothing_of
from spectral_compile.pipeline import PassManager
from spectral_compile.scopes import Scopes
from tests.integration.models import TinyLM, tokens

EVERY = spectral.WeightSmoothing(every=1)
QUICK = spectral.WeightSmoothing(warmup=3, cooldown=2)
HIDDEN = {f"blocks.0.{name}.weight" for name in ("gate", "up", "down")}


def tiny(**more):
    return TinyLM(blocks=1, **more)


def options(*passes, **more):
    return {"recipe": "none", "codegen": "eager", "passes": list(passes), **more}


def compiled(model, *passes, **more):
    model.compile(backend="spectral", options=options(*passes, **more))
    return model


def sgd(model, lr=1e-3):
    return torch.optim.SGD(model.parameters(), lr=lr)


def step(model, optimizer, size=1.0, scaler=None, clip=None):
    loss = size * model(tokens())
    (loss if scaler is None else scaler.scale(loss)).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def smoothed_weights(optimizer):
    return [set(changes) for _, changes in smoothing_of(optimizer).log]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_weights_of_linears_are_smoothed_as_their_optimizer_steps(checkpointed):
    model, plain = (tiny(checkpointed=checkpointed) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    optimizer, reference = sgd(compiled(model, EVERY)), sgd(plain)
    step(model, optimizer)
    step(plain, reference)
    assert smoothed_weights(optimizer) == [HIDDEN]
    for name, value in plain.named_parameters():
        expected = smoothed(value.detach()).weight if name in HIDDEN else value
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_one_step_after_a_large_gradient_clipped_or_not(clip):
    model = compiled(tiny(), QUICK)
    optimizer = sgd(model)
    for size in (1, 1, 1, 1, 5):
        step(model, optimizer, size, clip=clip)
    assert not smoothing_of(optimizer).log
    step(model, optimizer, clip=clip)
    assert [at for at, _ in smoothing_of(optimizer).log] == [5]


def test_what_a_scaler_skips_does_not_count():
    model = compiled(tiny(), QUICK)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=4.0, growth_interval=5)
    smoothing_of(optimizer).scale = scaler.get_scale
    for number in range(8):
        step(model, optimizer, float("inf") if number == 6 else 1.0, scaler)
    assert smoothing_of(optimizer).steps == 7
    assert not smoothing_of(optimizer).log


def test_an_evaluation_counts_for_nothing():
    model = compiled(tiny(), EVERY)
    optimizer = sgd(model)
    with torch.no_grad():
        model(tokens())
    assert not attached._watched.keys() & {id(p) for p in model.parameters()}
    step(model, optimizer)
    model.eval()
    with torch.no_grad():
        model(tokens())
    optimizer.step()  # of nothing: there are no gradients
    assert smoothing_of(optimizer).steps == 1


def test_graph_breaks_recompiles_and_a_second_module_attach_once():
    class Broken(TinyLM):
        def forward(self, tokens):
            x = self.embedding(tokens)
            for block in self.blocks:
                torch._dynamo.graph_break()
                x = block(x)
            return self.lm_head(x).float().log_softmax(-1).mean()

    one, other = Broken(), Broken()
    said = options(EVERY)
    optimizers = []
    for model in (one, other):  # the second finds the code of the first
        model.compile(backend="spectral", options=said)
        optimizers.append(sgd(model))
        step(model, optimizers[-1])
    one(tokens(batch=2, length=8)).backward()  # other shapes, other graphs
    optimizers[0].step()
    for optimizer, steps in zip(optimizers, (2, 1), strict=True):
        assert smoothing_of(optimizer).steps == steps
        assert all(len(changes) == 6 for changes in smoothed_weights(optimizer))
    assert [len(p._post_accumulate_grad_hooks) for p in one.blocks.parameters()] == [1] * 10


def test_blocks_that_are_compiled_apart_share_a_trigger():
    model = TinyLM()
    said = options(EVERY)
    for block in model.blocks:
        block.compile(backend="spectral", options=said)
    optimizer = sgd(model)
    step(model, optimizer)
    assert smoothing_of(optimizer).steps == 1
    assert len(smoothed_weights(optimizer)[0]) == 6


def test_a_changed_configuration_takes_the_place_of_the_old_one():
    model, said = tiny(), options(EVERY)
    model.compile(backend="spectral", options=said)
    optimizer = sgd(model)
    step(model, optimizer)
    said["passes"] = [spectral.WeightSmoothing(every=2)]
    for _ in range(2):
        step(model, optimizer)
    said["disable"] = ["weight_smoothing"]
    step(model, optimizer)
    del said["disable"]
    for _ in range(2):
        step(model, optimizer)
    assert [len(changes) for changes in smoothed_weights(optimizer)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ({"disable": ["weight_smoothing"]}, HIDDEN),
        ({"exclude": ["gate|down"], "recipe": "identity"}, {name for name in HIDDEN if "up" not in name}),
        (
            {"rules": [spectral.Rule(layers="up", high_precision=True)], "recipe": "identity"},
            {name for name in HIDDEN if "up" in name},
        ),
    ],
)
def test_what_is_excluded_is_left_alone(more, left):
    model = compiled(tiny(), EVERY, **more)
    optimizer = sgd(model)
    step(model, optimizer)
    assert set().union(*smoothed_weights(optimizer)) == HIDDEN - left


def test_decorators_say_for_which_modules():
    model = tiny()
    spectral.configure(EVERY)(model.blocks)
    spectral.exclude(model.blocks[0].down)
    optimizer = sgd(compiled(model))
    step(model, optimizer)
    assert smoothed_weights(optimizer) == [HIDDEN - {"blocks.0.down.weight"}]


def test_fused_weights_fall_into_parts_where_the_graph_shows_them_or_where_it_is_said():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(64, 16)
            self.qkv, self.gate_up = nn.Linear(16, 32), nn.Linear(16, 64)
            self.kv, self.experts = nn.Linear(16, 24), nn.Parameter(torch.randn(3, 16, 8) / 4)
            self.lm_head = nn.Linear(8, 64, bias=False)

        def forward(self, tokens):
            x = self.embedding(tokens)
            q, k, v = self.qkv(x).split([16, 8, 8], dim=-1)
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            sliced = self.kv(x)
            low, high = sliced[..., :8], sliced[..., 8:16] + sliced[..., 16:]
            wide = (q @ self.experts[0]) + k + v + low + high + (gate * up)[..., :8]
            return nn.functional.cross_entropy(self.lm_head(wide).flatten(0, 1), tokens.flatten())

    asked = spectral.WeightSmoothing(split={"gate": (32, 16, 16)})
    (graph,) = spectral.explain(Fused(), tokens(), options=options(asked)).graphs
    rows = {weight.name: weight for weight in graph.weights}
    assert rows["qkv.weight"].sizes == (16, 8, 8)
    assert rows["gate_up.weight"].sizes == (32, 16, 16)
    assert rows["kv.weight"].sizes == (8, 8, 8)
    assert (rows["experts"].role, rows["experts"].reason) == ("experts", "")
    assert rows["embedding.weight"].reason == "embedding: its rows are looked up"
    assert rows["lm_head.weight"].reason == "output head: its result goes into the loss"
    with pytest.warns(UserWarning, match="split 'qvk' matches no parameter"):
        spectral.explain(tiny(), tokens(), options=options(spectral.WeightSmoothing(split={"qvk": 3})))


def test_tied_weights_are_left_alone_and_shared_ones_smoothed_once():
    model = tiny(tied=True)
    model.blocks[0].up = model.blocks[0].gate
    optimizer = sgd(compiled(model, EVERY))
    step(model, optimizer)
    assert smoothed_weights(optimizer) == [HIDDEN - {"blocks.0.up.weight"}]
    (graph,) = spectral.explain(model, tokens(), options=options(EVERY)).graphs
    assert graph.weights[0].reason == "embedding: its rows are looked up, and it multiplies: tied"
    assert "3 of" not in str(spectral.explain(model, tokens(), options=options(EVERY)))


def test_a_router_and_attention_in_one_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.up, self.router, self.down = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 16)

        def forward(self, x):
            x = x + self.attention(x, x, x, need_weights=False)[0]
            top = self.router(x).softmax(-1).topk(2).values
            return x + self.down(self.up(x)) * top.sum(-1, keepdim=True)

    (graph,) = spectral.explain(Net(), torch.randn(2, 4, 16), options=options(EVERY)).graphs
    assert next(w.sizes for w in graph.weights if w.name == "attention.in_proj_weight") == (16, 16, 16)
    reasons = {weight.name: weight.reason for weight in graph.weights if len(weight.shape) > 1}
    assert reasons == {
        "attention.in_proj_weight": "",
        "attention.out_proj.weight": "",
        "up.weight": "",
        "router.weight": "router: its result is ranked (top-k)",
        "down.weight": "",
    }


def test_an_optimizer_of_other_parameters_smooths_nothing_and_that_is_said(monkeypatch):
    monkeypatch.setattr(attached, "_UNSTEPPED", 3)
    model = compiled(tiny(), EVERY)
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    other = torch.optim.SGD(copies, lr=0.1)
    before = model.blocks[0].up.weight.detach().clone()
    for _ in range(2):
        step(model, other)
    with pytest.warns(UserWarning, match="had no effect in 3 backward passes"):
        step(model, other)
    assert torch.equal(model.blocks[0].up.weight, before)
    assert not smoothing_of(other).log


def test_modules_that_are_gone_are_forgotten():
    gc.collect()
    before = len(attached._watched)
    model = compiled(tiny(), EVERY)
    optimizer = sgd(model)
    step(model, optimizer)
    assert len(attached._watched) > before
    twin = copy.deepcopy(model)
    del model, optimizer
    torch._dynamo.reset()
    gc.collect()
    assert len(attached._watched) == before
    assert before or attached._handle is None
    assert not twin.blocks[0].up.weight._post_accumulate_grad_hooks


def test_a_whole_compiled_train_step_is_smoothed_as_well():
    model = tiny()
    optimizer = sgd(model)

    @torch.compile(backend="spectral", options=options(EVERY))
    def train(batch):
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()

    for _ in range(2):
        train(tokens())
    assert smoothed_weights(optimizer) == [HIDDEN, HIDDEN]


def test_a_gradient_inside_the_graph_is_refused_with_a_warning():
    model = nn.Linear(4, 4)
    parameters = dict(model.named_parameters())

    @torch.compile(backend="spectral", options=options(EVERY))
    def train(x):
        def loss(weights):
            return torch.func.functional_call(model, weights, (x,)).sum()

        return torch.func.grad(loss)(parameters)

    with pytest.warns(UserWarning, match="no weight is smoothed"):
        train(torch.randn(2, 4))


def test_resuming_is_the_same_to_the_bit(tmp_path):
    def run(model, optimizer, sizes):
        for size in sizes:
            step(model, optimizer, size)

    def fresh():
        torch.manual_seed(0)
        model = compiled(tiny(), QUICK)
        return model, sgd(model)

    sizes = [1, 1, 1, 1, 5, 1, 1]
    whole, optimizer = fresh()
    run(whole, optimizer, sizes)
    model, optimizer = fresh()
    run(model, optimizer, sizes[:5])  # it fired, and has not been read
    torch.save({"model": model.state_dict(), "smoothing": smoothing_of(optimizer).state_dict()}, tmp_path / "it.pt")
    model, optimizer = fresh()
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    smoothing_of(optimizer).load_state_dict(saved["smoothing"])
    assert smoothing_of(optimizer).state_dict() == saved["smoothing"]
    run(model, optimizer, sizes[5:])
    assert len(smoothing_of(optimizer).log) == 1
    assert torch.equal(model.blocks[0].up.weight, whole.blocks[0].up.weight)


def test_autocast_smooths_the_fp32_weights_and_a_quantised_model_is_smoothed_too():
    model = tiny()
    model.compile(backend="spectral", options={"codegen": "eager", "passes": [EVERY]})
    optimizer = sgd(model)
    with torch.autocast("cpu", torch.bfloat16):
        step(model, optimizer)
    assert smoothed_weights(optimizer) == [HIDDEN]
    assert model.blocks[0].up.weight.dtype == torch.float32


def test_explain_attaches_nothing_and_shows_why():
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = spectral.explain(model, tokens(), options=options(EVERY, exclude=["down"], recipe="identity"))
    assert not any(map(attached.is_watched, model.parameters()))
    assert "2 of" in str(explanation)
    reasons = {weight.name: weight.reason for weight in explanation.graphs[0].weights}
    assert reasons["blocks.0.down.weight"] == "excluded by the rule for layers 'down'"
    assert reasons["blocks.0.norm.weight"] == "no matrix"
    assert explanation.as_dict()["graphs"][0]["weights"][0]["name"] == "embedding.weight"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"function": "clipp"}, "did you mean 'clip'"),
        ({"share": 0.0}, "WeightSmoothing: 'share' is of min"),
        ({"threshold": 0.5}, "WeightSmoothing: 'threshold' is a ratio"),
        ({"every": 0}, "every is a number of steps, 1 or more, not 0"),
        ({"split": {"(": 2}}, "is not a regular expression"),
        ({"split": {"qkv": 0}}, "is in parts of 1 or more, not 0"),
        ({"split": {"qkv": "three"}}, "cannot be"),
        ({"strength": 1}, "has no setting 'strength'"),
    ],
)
def test_settings_that_cannot_be(said, message):
    with pytest.raises(ValueError, match=message):
        spectral.WeightSmoothing(**said)


@pytest.mark.slow
def test_code_from_the_disk_cache_smooths_too():
    hits = torch._dynamo.utils.counters["aot_autograd"]
    for number in range(2):
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False))
        compiled = torch.compile(model, backend="spectral", options={"recipe": "none", "passes": [EVERY]})
        optimizer, before = sgd(model), hits["autograd_cache_hit"]
        compiled(torch.randn(4, 16)).sum().backward()
        optimizer.step()
        assert smoothed_weights(optimizer) == [{"0.weight", "2.weight"}]
        assert number == 0 or hits["autograd_cache_hit"] == before + 1


def test_its_settings_are_in_no_cache_key_but_that_of_a_graph_that_users_passes_see():
    def key(*passes):
        base, said = Options(passes=passes), (("L['self'].up", Configuration(passes=passes)),)
        return PassManager(GraphFacts((), (), True), Scopes(base, said, said, (base, Options()))).uuid()

    def a_users_pass(graph, options):
        pass

    assert key(EVERY) == key(QUICK) == key()
    assert key(EVERY, spectral.QuantizeFP4(format="mxfp4")) != key(EVERY)
    spectral.register_pass(stage="joint", after="mean_center")(a_users_pass)
    try:
        assert key(EVERY) != key(QUICK)
    finally:
        spectral.unregister_pass("a_users_pass")


def test_nan_smooths_nothing():
    model = compiled(tiny(), QUICK)
    optimizer = sgd(model, lr=0.0)
    for size in (1, 1, 1, 1, float("nan"), 1, 1):
        step(model, optimizer, size)
    assert smoothing_of(optimizer).steps == 7
    assert not smoothing_of(optimizer).log
