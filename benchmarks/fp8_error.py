"""The error of the carrier "fp8" against K, by a model of Hopper's sums: with and without promotion to fp32.

    python -m benchmarks.fp8_error

Operands are exact, so the error is that of the sums. The model, after what has been published of the hardware: an
instruction adds 32 products and the sum so far; all are cut off 13 bits below the largest of them. Promotion starts
such a sum afresh every 128 of K and adds it up in fp32. On a GPU, `benchmarks.gpu --parts fp8` measures the real thing.
"""

import sys

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats import e5m2

INSTRUCTION, PROMOTION, BITS = 32, 128, 13
EXTENTS = (128, 512, 2048, 8192, 32768)
SAMPLES = 512  # dot products


def main() -> int:
    torch.manual_seed(0)
    for spread in (0, 4):
        what = f"block magnitudes spread over 2^+-{spread}" if spread else "normal numbers"
        table = Table(title=f"relative error of MXFP4 dot products in FP8, {what}")
        for heading in ("K", "never promoted", f"promoted every {PROMOTION}", "fp32 sums", "blocks out of range"):
            table.add_column(heading, justify="right")
        for k in EXTENTS:
            (a, lost), (b, _) = (_operand(k, spread) for _ in range(2))
            products = a.double() * b.double()
            exact = products.sum(-1)
            found = (hopper(products, k), hopper(products, PROMOTION), _in_fp32(products))
            errors = [f"{float((sums - exact).norm() / exact.norm()):.1e}" for sums in found]
            table.add_row(str(k), *errors, str(int(lost)))
        Console().print(table)
    return 0


def hopper(products: Tensor, promotion: int) -> Tensor:
    """Sums [rows] of products [rows, k], fp64 that holds them exactly, as the model has it."""
    total = torch.zeros(products.shape[0], dtype=torch.float32)
    for part in products.split(promotion, dim=-1):
        sums = torch.zeros(products.shape[0], 1, dtype=torch.float64)
        for terms in part.split(INSTRUCTION, dim=-1):
            sums = _cut_off(torch.cat((sums, terms), dim=-1)).sum(-1, keepdim=True)
        total += sums[:, 0].float()
    return total.double()


def _in_fp32(products: Tensor) -> Tensor:
    """Added up one after the other."""
    total = torch.zeros(products.shape[0], dtype=torch.float32)
    for column in products.float().unbind(-1):
        total += column
    return total.double()


def _cut_off(terms: Tensor) -> Tensor:
    """Each term without what is below 2**-BITS of the largest one's leading bit."""
    _, exponent = torch.frexp(terms.abs().amax(-1, keepdim=True))
    unit = torch.ldexp(torch.ones_like(terms[:, :1]), exponent - 1 - BITS)
    return torch.trunc(terms / unit) * unit


def _operand(k: int, spread: int) -> tuple[Tensor, Tensor]:
    """[SAMPLES, k] E5M2 values of normal numbers, relative to their rows' largest scale; and blocks out of range."""
    x = torch.randn(SAMPLES, k // e5m2.BLOCK, e5m2.BLOCK)
    q = formats.quantize((x * torch.exp2(spread * torch.randn(SAMPLES, k // e5m2.BLOCK, 1))).flatten(1), "mxfp4")
    values, lost = e5m2.to_e5m2(q.codes, q.scales)
    return values.to(torch.float32), lost


if __name__ == "__main__":
    sys.exit(main())
