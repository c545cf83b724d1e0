"""What splitting a router costs: a Mixtral block's forward and backward, each mode against the block as it is.

    python -m benchmarks.routers [--tokens 1024] [--heads 2] [--dispatch grouped_mm] [--rounds 15] [--threads 2]

All compiled by Inductor in bf16, nothing quantised, taking turns; ratios are of two times of one round, their median
and quartiles are printed.
"""

import argparse
import copy
import warnings
from collections.abc import Callable

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.bench_timing import Spread, kernel_times, paired_ratio
from spectral_compile import HeadwiseRouter

MODES = ("vote", "subtoken", "bank", "mask")
ORIGINAL = "as it is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dispatch", choices=("grouped_mm", "batched_mm"), default="grouped_mm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    times = kernel_times(steps(arguments), arguments.rounds)
    shape = f"{arguments.tokens} tokens, d = {arguments.width}, f = {arguments.hidden}, {arguments.experts} experts"
    table = Table(title=f"{shape}, top-2, {arguments.dispatch}, {arguments.heads} heads, {arguments.threads} threads")
    for heading in ("", "ms, median", "quartiles", "x as it is", "quartiles"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, seconds in times.items():
        spread, ratio = Spread.of([1e3 * s for s in seconds]), paired_ratio(seconds, times[ORIGINAL])
        table.add_row(
            *(name, f"{spread.median:.1f}", f"{spread.low:.1f}-{spread.high:.1f}"),
            *(f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"),
        )
    Console(width=120).print(table)


def steps(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Forward and backward of the block, by what was done to its router."""
    config = transformers.MixtralConfig(
        hidden_size=arguments.width,
        intermediate_size=arguments.hidden,
        num_local_experts=arguments.experts,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=64,
    )
    model = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    model.set_experts_implementation(arguments.dispatch)
    block = model.model.layers[0].mlp
    x = torch.randn(1, arguments.tokens, arguments.width, dtype=torch.bfloat16, requires_grad=True)
    found = {ORIGINAL: _step(block, x, [])}
    for mode in MODES:
        settings = HeadwiseRouter(heads=arguments.heads, mode=mode, acknowledge=True)
        found[mode] = _step(copy.deepcopy(block), x, [settings])
    return found


def _step(block: nn.Module, x: torch.Tensor, passes: list[HeadwiseRouter]) -> Callable[[], object]:
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="spectral", options={"recipe": "none", "passes": passes}, fullgraph=True)
    gradient = torch.randn_like(x)
    parameters = list(block.parameters())

    def step() -> object:
        return torch.autograd.grad(compiled(x), [x, *parameters], gradient)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step()
    return step


if __name__ == "__main__":
    main()
