"""A table of what the order of operations decides: scale bytes that other ways to write the same formula change."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import numerics_inputs as inputs
from benchmarks.numerics_tables import Table
from spectral_compile.formats import nvfp4
from spectral_compile.formats.blocks import block_amax, to_blocks

ROWS, COLS = 256, 1024
TENSORS = 40

# Of a block's largest magnitude b, the tensor's amax and S = 2688 / amax; the contract is b * (S * (1/6)).
ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "b * S / 6": lambda b, amax, s: b * s / _like(b, 6),
    "(b / 6) * S": lambda b, amax, s: b / _like(b, 6) * s,
    "(b / 6) / (amax / 2688)": lambda b, amax, s: b / _like(b, 6) / (amax / _like(amax, 2688)),
    "b * 448 / amax": lambda b, amax, s: b * 448 / amax,
}


def order_table() -> Table:
    """For Gaussian tensors in two precisions: the share of bytes that differ, and in how many tensors any does."""
    shares: dict[tuple[str, torch.dtype], list[float]] = {}
    dtypes = (torch.bfloat16, torch.float32)
    for seed in range(TENSORS):
        x = inputs.gaussian(ROWS, COLS, seed=3000 + seed)
        for dtype in dtypes:
            for name, share in differing_bytes(x.to(dtype)).items():
                shares.setdefault((name, dtype), []).append(share)
    rows = []
    for name in ORDERS:
        of = [shares[name, dtype] for dtype in dtypes]
        rows.append([name, *(cell for values in of for cell in _cells(values))])
    columns = ("order", *(f"{p}: {what}" for p in ("bf16", "fp32") for what in ("bytes, %", "at most, %", "tensors")))
    return Table("order", f"Scale bytes that differ, {TENSORS} Gaussian tensors [{ROWS}, {COLS}]", columns, rows)


def differing_bytes(x: Tensor) -> dict[str, float]:
    """For each of ORDERS, the share of x's block scales that differ from the contract's."""
    blocks = to_blocks(x.float(), nvfp4.BLOCK, 1)
    amax = blocks.abs().amax()
    ours, _ = nvfp4.block_scales(blocks, amax, "amax")
    arguments = block_amax(blocks), amax, nvfp4.encode_scale(amax)
    theirs = {name: order(*arguments).clamp(max=448).to(ours.dtype) for name, order in ORDERS.items()}
    return {name: float((ours.float() != scales.float()).double().mean()) for name, scales in theirs.items()}


def _cells(shares: list[float]) -> tuple[str, str, str]:
    mean = sum(shares) / len(shares)
    return f"{100 * mean:.2f}", f"{100 * max(shares):.2f}", f"{sum(share > 0 for share in shares)} of {len(shares)}"


def _like(x: Tensor, value: float) -> Tensor:
    """A tensor: torch turns a division by a Python number into a product with its reciprocal."""
    return torch.full_like(x, value)
