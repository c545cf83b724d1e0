"""What `WeightSmoothing` costs while it never triggers, and what one call costs: `python -m benchmarks.idle_smoothing`

The time inside all that it hangs on a step (asking, the norm of each gradient, the optimizer's hook) against the whole
step, on the demo's model; differences of whole steps would drown in the noise of a shared machine. On a CPU, eager.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from examples.corpus import batches, load_corpus
from examples.gpt import GPT, GPTConfig
from spectral_compile import WeightSmoothing
from spectral_compile.optim import attached, smoothed


class Clock:
    """Seconds spent inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the process's exit code."""
    parser = argparse.ArgumentParser(description="The cost of smoothing that never triggers.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = GPT(GPTConfig(dim=args.dim, layers=args.layers, context=args.context))
    never = WeightSmoothing(threshold=1e9)
    model.compile(backend="spectral", options={"recipe": "none", "codegen": "eager", "passes": [never]})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clock, steps, inside = Clock(), [], []
    patched = {name: clock.timed(getattr(attached, name)) for name in ("ask", "_stepped")}
    accumulated = clock.timed(attached._Attached._accumulated)
    text = batches(load_corpus().train, args.batch, args.context, seed=0)
    with mock.patch.multiple(attached, **patched), mock.patch.object(attached._Attached, "_accumulated", accumulated):
        for number, batch in enumerate(itertools.islice(text, args.steps + 2)):
            clock.seconds, start = 0.0, time.perf_counter()
            model(*batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number >= 2:  # the first compiles
                steps.append(time.perf_counter() - start)
                inside.append(clock.seconds)

    start = time.perf_counter()
    weights = [p for name, p in model.layers.named_parameters() if p.dim() == 2]
    for weight in weights:
        smoothed(weight.detach())
    call = time.perf_counter() - start
    step, idle = statistics.median(steps), statistics.median(inside)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.1f}M parameters, {args.batch} x {args.context} tokens, {torch.get_num_threads()} thread(s)")
    print(f"a step: {1e3 * step:.0f} ms, of which smoothing that does nothing: {1e3 * idle:.2f} ms, {idle / step:.2%}")
    print(f"a call that smooths {len(weights)} weights: {1e3 * call:.0f} ms, {call / step:.2f} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
