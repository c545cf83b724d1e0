"""A changed option, rule or program never meets old code: in one process (Dynamo's cache) or in two (the disk's)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spectral_compile.pipeline import observe
from tests.integration.models import TinyLM, tokens

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, torch, spectral_compile
from torch._dynamo.utils import counters
from tests.integration.models import TinyLM, loss_and_gradients, tokens
torch.manual_seed(0)
options, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
model = TinyLM(dim=32, blocks=1)
for old, new in names.items():
    model.blocks[0].__class__ = type(new, (model.blocks[0].__class__,), {})
spectral_compile.manual_seed(0)
loss, grads = loss_and_gradients(model, tokens(), backend="spectral", options=options)
stats = counters["aot_autograd"]
print("RESULT" + json.dumps({
    "loss": loss.item(),
    "grad": {n: g.double().norm().item() for n, g in grads.items()},
    "hits": stats["autograd_cache_hit"], "misses": stats["autograd_cache_miss"],
}))
"""


def run(cache: Path, options: dict[str, object], classes: dict[str, str] | None = None) -> dict[str, object]:
    """Train one step in a fresh process with its disk cache in `cache`."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(options), json.dumps(classes or {})]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.partition("RESULT")[2])


def test_processes_share_code_only_under_the_same_options(tmp_path):
    averis = run(tmp_path, {"recipe": "averis"})
    assert (averis["hits"], averis["misses"]) == (0, 1)
    plain = run(tmp_path, {"recipe": "nvfp4-plain"})
    assert plain["misses"] == 1, "another recipe met cached code"
    assert plain["grad"] != averis["grad"]
    excluded = run(tmp_path, {"recipe": "averis", "exclude": ["gate"]})
    assert excluded["misses"] == 1, "another rule met cached code"
    assert excluded["grad"] != averis["grad"]
    warm = run(tmp_path, {"recipe": "averis"})
    assert (warm["hits"], warm["misses"]) == (1, 0), "the warm start compiled again"
    # Inductor sums the embedding's gradient in any order; other code would differ in the third digit.
    assert warm["grad"] == pytest.approx(averis["grad"], rel=1e-6)
    assert warm["loss"] == averis["loss"]
    renamed = run(tmp_path, {"recipe": "averis"}, {"Block": "OtherBlock"})
    assert renamed["misses"] == 1, "another module class met cached code"


@pytest.fixture
def compiles():
    """One entry for each graph that is compiled: how many GEMMs it quantises."""
    seen = []
    stop = observe(lambda stage, graph, plan: seen.append(len(plan.quantized)) if stage == "joint" else None)
    torch._dynamo.reset()
    yield seen
    stop()


def test_options_changed_in_place_recompile(compiles):
    options = {"codegen": "eager", "recipe": "averis"}
    step = torch.compile(TinyLM(blocks=1), backend="spectral", options=options)
    step(tokens())
    step(tokens())
    options["exclude"] = ["gate"]
    step(tokens())
    del options["exclude"]
    step(tokens())
    assert compiles == [9, 6]


def test_compiling_anew_with_other_options_recompiles_and_with_the_same_does_not(compiles):
    model = TinyLM(blocks=1)
    for recipe in ("averis", "nvfp4-plain", "averis", "nvfp4-plain"):
        torch.compile(model, backend="spectral", options={"codegen": "eager", "recipe": recipe})(tokens())
    assert compiles == [9, 9]


def test_switching_off_by_environment_recompiles(compiles, monkeypatch):
    step = torch.compile(TinyLM(blocks=1), backend="spectral", options={"codegen": "eager"})
    quantised = step(tokens())
    monkeypatch.setenv("SPECTRAL_DISABLE", "1")
    exact = step(tokens())
    monkeypatch.delenv("SPECTRAL_DISABLE")
    assert torch.equal(step(tokens()), quantised)
    assert not torch.equal(exact, quantised)
    assert compiles == [9]


def test_layers_of_one_shape_in_a_list_share_no_plan_by_accident(compiles):
    """Two modules with the same code and shapes but other names: a rule tells them apart."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.other = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.kept(x).relu() + self.other(x)

    model = Pair()
    x = torch.randn(64, 32)
    torch.compile(model, backend="spectral", options={"codegen": "eager", "exclude": ["kept"]})(x)
    torch.compile(model, backend="spectral", options={"codegen": "eager", "exclude": ["kept", "other"]})(x)
    assert compiles == [2, 0]
