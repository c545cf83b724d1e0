"""Timing every configuration of every carrier on this GPU; the fastest go into the kernels' table."""

from typing import Any

import torch

from benchmarks.bench_timing import medians
from benchmarks.gpu_parts import SHAPES, product, quantize
from benchmarks.gpu_timing import Call, in_turns
from spectral_compile.formats import FORMATS
from spectral_compile.lowering.carrier import capability_of, why_not
from spectral_compile.lowering.triton import configs, multiply


def tune(rounds: int, device: str) -> list[dict[str, Any]]:
    """For every carrier and extent, seconds of each configuration, summed over the shapes of that extent."""
    found: list[dict[str, Any]] = []
    capability = capability_of(torch.device("cuda", torch.cuda.current_device()))
    assert capability is not None
    for (carrier, extent), candidates in configs.CONFIGS.items():
        format = next((f for f in FORMATS if not why_not(carrier, (f, f), "cuda", capability)), None)
        if format is None:
            continue
        seconds = dict.fromkeys(candidates, 0.0)
        for shape in SHAPES:
            if configs.extent_of(*shape[:2]) == extent:
                for config, taken in _seconds(shape, format, carrier, candidates, rounds).items():
                    seconds[config] += taken
        best = min(seconds, key=lambda config: seconds[config])
        configs.record(carrier, capability, extent, best, device)
        times = [{"config": str(config), "seconds": taken} for config, taken in seconds.items()]
        found.append({"carrier": carrier, "extent": extent, "format": format, "times": times})
    return found


def _seconds(
    shape: tuple[int, int, int], format: str, carrier: str, candidates: tuple[configs.Config, ...], rounds: int
) -> dict[configs.Config, float]:
    """Of each configuration; infinite where it does not run on this device."""
    m, n, k = shape
    a, b = quantize(torch.randn(m, k, device="cuda"), format), quantize(torch.randn(n, k, device="cuda"), format)
    taken = dict.fromkeys(candidates, float("inf"))
    calls: dict[str, Call] = {}
    usual = multiply.choose

    def call(config: configs.Config) -> None:
        multiply.choose = lambda *_: config
        try:
            product(a, b, shape, True, format, carrier)
        finally:
            multiply.choose = usual

    for config in candidates:
        try:
            call(config)
            torch.cuda.synchronize()
            calls[str(config)] = lambda config=config: call(config)  # type: ignore[misc]
        except Exception as error:
            print(f"{config}: {error}")
    middle = medians(in_turns(calls, rounds))
    return taken | {config: middle[str(config)] for config in candidates if str(config) in middle}
