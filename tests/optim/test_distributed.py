"""Two processes, gloo between them: what each does with its part of a matrix is what one does with all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from spectral_compile.optim import Smoother, Smoothing, Spectra, Split, WeightSpectra, parameter_groups, smoothed
from spectral_compile.optim.parts import parts_of
from spectral_compile.optim.subspace import power_step, start, top_subspace
from tests.integration.models import TinyLM, tokens

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
line = init_device_mesh("cpu", (2,))
plane = init_device_mesh("cpu", (1, 2))
WAYS = {
    "rows": (line, [Shard(-2)]), "columns": (line, [Shard(-1)]), "replicated": (line, [Replicate()]),
    "hybrid": (plane, [Replicate(), Shard(-2)]), "both": (plane, [Shard(-1), Shard(-2)]),
}
def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def spread(tensor, mesh, placements):
    placements = [Shard(p.dim % tensor.dim()) if isinstance(p, Shard) else p for p in placements]
    return distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None)

def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def train(place, shape, **group):
    weight = nn.Parameter(place(randn(*shape, seed=1)))
    optimizer = Spectra([{"params": [weight], **group}], lr=0.1, rank=0.1)
    for step in range(4):
        weight.grad = place(randn(*shape, seed=10 + step))
        optimizer.step()
    state = optimizer.state[weight]
    return [full(t.detach()) for t in (weight, state["M"], state["V"])], state

def distance(first, second):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second))

def factors(mesh, placements):
    # 13 rows over two ranks: uneven
    M = randn(13, 18, seed=3)
    V = start(M, 3)
    there = spread(M, mesh, placements)
    V_there = start(there, 3)
    found, expected = power_step(there, V_there), power_step(M, V)
    smooth = smoothed(there, Smoothing(cap=1e9)).weight
    smooth = DTensor.from_local(smooth, mesh, there.placements, shape=M.shape, stride=M.stride())
    values = top_subspace(there, 4).s
    return max(
        distance([V_there.full_tensor()], [V]),
        distance([found.s, values], [expected.s, top_subspace(M, 4).s]),
        distance([smooth.full_tensor()], [smoothed(M, Smoothing(cap=1e9)).weight]),
    )

def spectra(mesh, placements):
    place = lambda tensor: spread(tensor, mesh, placements)
    worst, kinds = 0.0, []
    for shape, group in (
        ((13, 18), {}), ((18, 13), {}), ((3, 8, 12), {}), ((1, 8), {}),
        ((24, 10), {"split": (12, 4, 8)}), ((10, 24), {"split": (12, 4, 8), "split_dim": -1}),
    ):
        whole, _ = train(lambda tensor: tensor.clone(), shape, **group)
        found, state = train(place, shape, **group)
        worst = max(worst, distance(found, whole))
        kinds.append(all(isinstance(state[key], DTensor) for key in ("M", "V")))
    return worst, all(kinds)

def experts():
    shape = (3, 8, 12)
    whole, _ = train(lambda tensor: tensor.clone(), shape)
    found, state = train(lambda tensor: spread(tensor, line, [Shard(0)]), shape)
    return distance(found, whole), state["V"].to_local().shape[0]

def fsdp():
    def make(sharded):
        torch.manual_seed(0)
        model = TinyLM()
        if sharded:
            for block in model.blocks:
                fully_shard(block, mesh=line)
            fully_shard(model, mesh=line)
        grouping = parameter_groups(model)
        return model, Spectra(grouping, lr=1e-2), WeightSpectra(grouping, every=1)

    def run(model, optimizer, spectra, steps):
        for step in steps:
            optimizer.zero_grad()
            model(tokens(seed=step)).backward()
            measured = spectra.measure(step)
            optimizer.step()
        return measured

    (alone, *own), (model, *rest) = make(False), make(True)
    expected, found = run(alone, *own, range(3)), run(model, *rest, range(3))
    errors = [distance([full(a.detach())], [b.detach()]) for a, b in zip(model.parameters(), alone.parameters())]
    spectra = [distance([a.singular_values, a.stable_rank, a.sje], [b.singular_values, b.stable_rank, b.sje])
               for a, b in zip(found, expected)]
    saved, weights = rest[0].state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    saved = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in saved["state"].items()},
             "param_groups": saved["param_groups"]}
    run(model, *rest, range(3, 5))
    ended = [p.detach().to_local().clone() for p in model.parameters()]
    again, *others = make(True)
    again.load_state_dict(weights)
    others[0].load_state_dict(saved)
    run(again, *others, range(3, 5))
    same = all(torch.equal(a, b.to_local()) for a, b in zip(ended, again.parameters()))
    return max(errors), max(spectra), same

def smoother(wrap):
    from torch.nn.parallel import DistributedDataParallel
    def run(model, trained):
        acting, optimizer = Smoother(parameter_groups(model), every=2), torch.optim.SGD(model.parameters(), lr=0.1)
        by_norm = Smoother(parameter_groups(model))
        for step in range(4):
            optimizer.zero_grad()
            trained(tokens(seed=step)).backward()
            optimizer.step()
        acting.remove(), by_norm.remove()
        return [full(p.detach()) for p in model.parameters()], by_norm.state.average.item(), len(acting.log)
    torch.manual_seed(0)
    alone = TinyLM()
    dist_was, dist.is_initialized = dist.is_initialized, lambda: False  # on its own, though there are others
    expected = run(alone, alone)
    dist.is_initialized = dist_was
    torch.manual_seed(0)
    model = TinyLM()
    trained = fully_shard(model, mesh=line) if wrap == "fsdp" else DistributedDataParallel(model)
    found = run(model, trained)
    return distance(found[0], expected[0]), found[1] / expected[1], found[2]

def refused():
    try:
        power_step(DTensor.from_local(torch.ones(4, 4), line, [Partial()]), torch.ones(4, 1))
    except ValueError as error:
        return str(error)

found = {"factors": {name: factors(*way) for name, way in WAYS.items()},
         "spectra": {name: spectra(*way) for name, way in WAYS.items()},
         "experts": experts(), "fsdp": fsdp(),
         "smoother": [smoother("fsdp"), smoother("ddp")], "refused": refused()}

def talk(dim):
    weight = nn.Parameter(spread(randn(12, 16, seed=0), line, [Shard(dim)]))
    optimizer = Spectra([weight])
    weight.grad = spread(randn(12, 16, seed=1), line, [Shard(dim)])
    optimizer.step()
    with CommDebugMode() as mode:
        optimizer.step()
    return {str(operator): count for operator, count in mode.get_comm_counts().items()}

found["talk"] = [talk(0), talk(1)]
print("RESULT" + json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
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
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        found.append(json.loads(out.partition("RESULT")[2].splitlines()[0]))
    return found


@pytest.mark.parametrize("way", ["rows", "columns", "replicated", "hybrid", "both"])
def test_a_sharded_matrix_is_the_whole_one(ranks, way):
    for found in ranks:
        assert found["factors"][way] < 1e-3
        error, distributed = found["spectra"][way]
        assert error < 1e-3
        assert distributed


def test_experts_shard_without_talking(ranks):
    assert [found["experts"][1] for found in ranks] == [2, 1]
    assert max(found["experts"][0] for found in ranks) < 1e-3


def test_fsdp_trains_as_one_process_does_and_resumes(ranks):
    for weights, spectra, same in (found["fsdp"] for found in ranks):
        assert weights < 1e-3
        assert spectra < 1e-2
        assert same


def test_smoothing_acts_alike_on_every_rank(ranks):
    for found in ranks:
        for weights, norm, calls in found["smoother"]:
            assert weights < 1e-3
            assert norm == pytest.approx(1, rel=1e-4)
            assert calls == 2


def test_nothing_is_gathered(ranks):
    """Sums of a step with rows split: of two Gram matrices, Z and |M|^2. With columns split: of P, s^2 and |M|^2."""
    for found in ranks:
        rows, columns = found["talk"]
        assert all("all_reduce" in name or "allreduce" in name for name in (*rows, *columns))
        assert (sum(rows.values()), sum(columns.values())) == (4, 3)


def test_a_pending_sum_is_refused(ranks):
    assert all("is a pending sum; redistribute it first" in found["refused"] for found in ranks)
