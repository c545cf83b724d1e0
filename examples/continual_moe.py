"""Does head-wise routing forget less? `python -m examples.continual_moe`

A tiny mixture-of-experts transformer learns four tasks one after the other, with the router as it is and with each mode
of head-wise routing: same parameters, same start, same batches. Attention and readouts are given, only router and
experts learn. `top-4` is the router as it is with twice as many experts a token: as many FLOPs as `bank`, which at the
same top-k costs more than the others. Sequences and families of tasks: `examples.factor_tasks`.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.factor_tasks import FAMILIES, SEQUENCES, Batch, output_projection, readout, tasks_of
from examples.headwise import MODES, chosen
from examples.moe import MoEConfig, MoETransformer
from spectral_compile import HeadwiseRouter
from spectral_compile.moe import (
    backward_transfer,
    effective_compositions,
    expert_overlap,
    overall_performance,
    route_entropy,
    route_load,
    router_alignment,
    token_routes,
)

ORIGINAL, WIDER = "original", "top-4"
ARMS = (ORIGINAL, WIDER, *MODES)
TASKS, BATCH, LR, TEST = 4, 54, 5e-3, 324  # tasks of a sequence; examples a step; Adam's rate; examples a test
RANK = 4  # of the subspaces in which experts are compared
HEADING = "| arm | learned | OP | BWT | BWT less original's | N_eff of a route | by chance | N_eff of an expert |"


@dataclass(frozen=True)
class Outcome:
    """Of one run. R [tasks, tasks]: accuracy on task j after training on tasks 0 .. i; OP and BWT of it; learned: the
    mean of its diagonal. The rest is measured at the end, on the tests of all tasks together.

    route: N_eff of a token's whole route, averaged by load; chance: the same with compositions shuffled among tokens.
    expert: N_eff of what shares weights: an expert, or where slices are routed apart the part of it that is a slice's.
    entropy: of the experts' load, nats. union: experts that take part in a token. overlap, alignment: see `moe`.
    """

    seed: int
    R: list[list[float]]
    learned: float
    op: float
    bwt: float
    route: float
    chance: float
    expert: float
    entropy: float
    union: float
    overlap: float
    alignment: float


def sizes_of(arm: str) -> MoEConfig:
    """The model's sizes, which differ in `top-4` only."""
    return replace(MoEConfig(), top_k=4) if arm == WIDER else MoEConfig()


@functools.cache
def arm_model(arm: str, codegen: str = "inductor") -> tuple[MoETransformer, Callable[[Tensor], Tensor]]:
    """An arm's model and what runs it, compiled once for all runs, each of which loads its weights into it."""
    config = sizes_of(arm)
    eye, nothing = torch.eye(config.dim), torch.zeros(config.questions * config.classes, config.dim)
    model = MoETransformer(config, eye, nothing)
    passes = [HeadwiseRouter(heads=config.heads, mode=mode, acknowledge=True) for mode in MODES if mode == arm]
    options: dict[str, Any] = {"recipe": "none", "codegen": codegen, "passes": passes}
    return model, torch.compile(model, backend="spectral", dynamic=False, options=options)


def start(sequence: str, family: str, arm: str, seed: int) -> dict[str, Tensor]:
    """The weights from which a run starts: the same for all arms of a seed."""
    torch.manual_seed(seed)
    config = sizes_of(arm)
    output = output_projection(family, config.heads, config.dim, seed)
    sizes = {"questions": config.questions, "classes": config.classes, "factors": config.heads, "seed": seed}
    return MoETransformer(config, output, readout(sequence, output, **sizes)).state_dict()


def train(sequence: str, family: str, arm: str, seed: int, steps: int, codegen: str = "inductor") -> Outcome:
    """One run: `steps` optimizer steps a task. All arms of a seed have the same weights to start from, and batches."""
    config = sizes_of(arm)
    model, forward = arm_model(arm, codegen)
    model.load_state_dict(start(sequence, family, arm, seed))
    sizes = {"dim": config.dim, "classes": config.classes, "factors": config.heads}
    tasks = tasks_of(sequence, family, tasks=TASKS, seed=seed, **sizes)
    chance = torch.Generator().manual_seed(seed)
    tests = [tasks.test(task, TEST, chance) for task in range(TASKS)]
    R = torch.zeros(TASKS, TASKS)
    for task in range(TASKS):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
        for _ in range(steps):
            batch = tasks.train(task, BATCH, chance)
            loss = F.cross_entropy(forward(batch.tokens)[:, tasks.questions[task]], batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for other, test in enumerate(tests):
            # As many at a time as in training, and with gradients: another graph would have to be compiled.
            logits = torch.cat([forward(tokens).detach() for tokens in test.tokens.split(BATCH)])
            R[task, other] = (logits[:, tasks.questions[other]].argmax(-1) == test.labels).float().mean()
    bwt, op = backward_transfer(R).item(), overall_performance(R).item()
    return Outcome(seed, R.tolist(), R.diagonal().mean().item(), op, bwt, **measures(model, tests, arm, config))


@torch.no_grad()
def measures(model: MoETransformer, tests: Sequence[Batch], arm: str, config: MoEConfig) -> dict[str, float]:
    """What `Outcome` says of routes and experts."""
    x = model.norm(model.attention(torch.cat([test.tokens for test in tests])))
    values = torch.cat([test.values for test in tests])
    router, moe = model.moe.router.weight, model.moe
    heads = 1 if arm in (ORIGINAL, WIDER) else config.heads
    indices = chosen(x, router, top_k=config.top_k, heads=heads, mode=arm)
    routes = token_routes(indices)
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    # Where slices are routed apart, a slice has its own columns or rows of an expert: those are what is shared.
    parts = indices if indices.dim() == 2 else (indices + config.experts * torch.arange(heads)[:, None]).flatten(1)
    load = route_load(indices, config.experts)
    return {
        "route": effective_compositions(routes, values).mean.item(),
        "chance": effective_compositions(routes, shuffled).mean.item(),
        "expert": effective_compositions(parts.flatten(), values.repeat_interleave(parts.shape[1], 0)).mean.item(),
        "entropy": route_entropy(load).item(),
        "union": F.one_hot(indices.flatten(1), config.experts).amax(1).sum(-1).double().mean().item(),
        "overlap": expert_overlap(moe.gate_up_proj, RANK).item(),
        "alignment": router_alignment(router, moe.gate_up_proj, RANK).mean().item(),
    }


def flops(arm: str) -> int:
    """Forward FLOPs a token of the layer's products as they are run, router included.

    Head-wise up-projections are `heads` times as many, and as much narrower: no arm but `mask` pays for them. `mask`
    goes through the whole layer once a head, and weighs what was computed before by zero.
    """
    config = sizes_of(arm)
    up, down = 2 * 2 * config.hidden * config.dim, 2 * config.dim * config.hidden
    ups, downs = {"bank": (1, config.heads), "mask": (config.heads, config.heads)}.get(arm, (1, 1))
    return 2 * config.experts * config.dim + config.top_k * (ups * up + downs * down)


def row(arm: str, outcomes: Sequence[Outcome], originals: Sequence[Outcome]) -> str:
    """A line of the table: means, and standard deviations over seeds."""
    less = [outcome.bwt - original.bwt for outcome, original in zip(outcomes, originals, strict=True)]
    columns: list[tuple[str, list[float]]] = [
        ("{:.3f}", [o.learned for o in outcomes]),
        ("{:.3f}", [o.op for o in outcomes]),
        ("{:+.3f}", [o.bwt for o in outcomes]),
        ("{:+.3f}", less),
        ("{:.1f}", [o.route for o in outcomes]),
        ("{:.1f}", [o.chance for o in outcomes]),
        ("{:.0f}", [o.expert for o in outcomes]),
    ]
    shown = [spread(form, values) for form, values in columns]
    if arm == ORIGINAL:
        shown[3] = "-"
    return f"| {arm} | {' | '.join(shown)} |"


def spread(form: str, values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value there is none."""
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.replace('+', '').format(statistics.stdev(values))}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print a table a sequence and family; the process's exit code."""
    parser = argparse.ArgumentParser(description="What head-wise routing does to forgetting in a sequence of tasks.")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps a task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--codegen", choices=("inductor", "eager"), default="inductor", help="of the compiled arms")
    parser.add_argument("--out", type=Path, default=Path("runs/continual"))
    args = parser.parse_args(arguments)
    if args.steps < 1 or args.seeds < 1:
        parser.error("--steps and --seeds are 1 or more")
    record = []
    for sequence in SEQUENCES:
        for family in FAMILIES:
            print(f"\n**{sequence}, {family}**\n\n{HEADING}\n|{'---|' * 8}")
            found: dict[str, list[Outcome]] = {}
            for arm in ARMS:
                runs = [train(sequence, family, arm, seed, args.steps, args.codegen) for seed in range(args.seeds)]
                found[arm] = runs
                print(row(arm, runs, found[ORIGINAL]), flush=True)
                record.append({"sequence": sequence, "family": family, "arm": arm, "runs": [asdict(o) for o in runs]})
    print("\n| arm | trained parameters | forward FLOPs a token |\n|---|---|---|")
    for arm in ARMS:
        print(f"| {arm} | {parameters(sizes_of(arm))} | {flops(arm)} |")
    summary: dict[str, Any] = {"steps": args.steps, "config": asdict(MoEConfig())}
    summary["parameters"] = {arm: parameters(sizes_of(arm)) for arm in ARMS}
    summary["flops"] = {arm: flops(arm) for arm in ARMS}
    write(args.out / "result.json", summary, record)
    return 0


def write(path: Path, summary: dict[str, Any], arms: Sequence[dict[str, Any]]) -> None:
    """As JSON, an arm a line, numbers to four decimals: there are thousands of them."""
    lines = ",\n".join(json.dumps(rounded(arm)) for arm in arms)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(summary)[:-1]}, "arms": [\n{lines}\n]}}\n')


def rounded(value: Any) -> Any:
    """JSON-ready data with its numbers to four decimals."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def parameters(config: MoEConfig) -> int:
    """That are trained: router and experts."""
    eye = torch.eye(config.dim)
    model = MoETransformer(config, eye, torch.zeros(config.questions * config.classes, config.dim))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    sys.exit(main())
