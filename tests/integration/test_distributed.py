"""Two processes on one machine, gloo between them: DDP, FSDP 2 and tensor parallelism."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from spectral_compile.pipeline import observe
from tests.integration.models import TinyLM, tokens

OPTIONS = {"codegen": "eager"}

def ddp_around_the_compiled_model(model):
    model.compile(backend="spectral", options=OPTIONS)
    return DistributedDataParallel(model)

def ddp_compiled(model):
    return torch.compile(DistributedDataParallel(model), backend="spectral", options=OPTIONS)

def fsdp2(model):
    for block in model.blocks:
        block.compile(backend="spectral", options=OPTIONS)
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def tensor_parallel(model):
    for block in model.blocks:
        parallelize_module(block, mesh, {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()})
    model.compile(backend="spectral", options=OPTIONS)
    return model

def train(wrap):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plans.clear()
    model = TinyLM()
    trained = wrap(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    losses = []
    for step in range(12):
        # In tensor parallelism both see all sequences, else each its own.
        loss = trained(tokens(seed=step if wrap is tensor_parallel else 2 * step + rank))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {
        "losses": losses,
        "weights": [p.detach().double().sum().item() for p in whole],
        "quantized": sum(len(plan.quantized) for plan in plans),
        "reasons": sorted({row.reason for plan in plans for row in plan.rows}),
    }

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mesh, plans = init_device_mesh("cpu", (2,)), []
observe(lambda stage, graph, plan: plans.append(plan) if stage == "joint" else None)
ways = (ddp_around_the_compiled_model, ddp_compiled, fsdp2, tensor_parallel)
print("RESULT" + json.dumps({way.__name__: train(way) for way in ways}))
dist.destroy_process_group()
"""

Found = dict[str, dict[str, object]]  # by way to train


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[Found]:
    """What each of two processes found."""
    store = tmp_path_factory.mktemp("distributed") / "store"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(store)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for process in started:
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-2000:]
        found.append(json.loads(out.partition("RESULT")[2].splitlines()[0]))
    return found


@pytest.mark.parametrize(
    ("way", "quantized"),
    [("ddp_around_the_compiled_model", 18), ("ddp_compiled", 18), ("fsdp2", 9), ("tensor_parallel", 0)],
    # of DDP all products but the head's; of FSDP 2 those of one block, whose code all blocks share
)
def test_two_processes_train_one_model(ranks, way, quantized):
    first, second = (found[way] for found in ranks)
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-6)
    assert first["quantized"] == second["quantized"] == quantized
    for result in (first, second):
        assert result["losses"][-1] < 0.6 * result["losses"][0]
    if not quantized:
        assert any("neither operand is computed from parameters alone" in reason for reason in first["reasons"])
