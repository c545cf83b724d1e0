"""Products of random codes, and how far a kernel may be from the reference: what tests on a GPU share with others."""

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import products
from spectral_compile.ops.scaled_mm import scaled_mm as reference

# Scale bytes that are finite and not negative; MXFP4's such that products stay within fp32.
SCALE_BYTES = {"nvfp4": (0, 0x7F), "mxfp4": (120, 134)}
# The interpreter does not round to bf16, it truncates.
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def quantized(rows: int, cols: int, format: str, square: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes and scales for [rows, cols], in the padding too."""
    kind = FORMATS[format]
    blocks, tiles = -(-cols // kind.block), -(-rows // (kind.block if square else 1))
    codes = torch.randint(256, (rows, blocks * kind.block // 2), dtype=torch.uint8)
    scales = torch.randint(*SCALE_BYTES[format], (tiles, blocks), dtype=torch.uint8)
    return codes, scales.view(kind.scale_dtype), torch.tensor(0.0037 if format == "nvfp4" else 1.0)


def product(
    shape: tuple[int, int, int],
    formats: tuple[str, str] = ("nvfp4", "nvfp4"),
    k_last: tuple[bool, bool] = (True, True),
    square: tuple[bool, bool] = (False, False),
    term: tuple[Tensor | None, Tensor | None] = (None, None),
    carrier: str = "bf16",
    out_dtype: torch.dtype = torch.float32,
) -> tuple:
    """Arguments of `spectral::scaled_mm`."""
    m, n, k = shape
    a = quantized(*((m, k) if k_last[0] else (k, m)), formats[0], square[0])
    b = quantized(*((n, k) if k_last[1] else (k, n)), formats[1], square[1])
    return (*a, *b, *term, m, n, k, *k_last, *formats, carrier, out_dtype)


def computed(arguments: tuple) -> Tensor:
    m, n, out_dtype = arguments[8], arguments[9], arguments[-1]
    out = torch.full((m, n), 77, dtype=out_dtype, device=arguments[0].device)
    products.scaled_mm(*arguments, out=(out,))
    return out


def assert_right(arguments: tuple, sums: float | None = None) -> None:
    """To the rounding of sums, in whatever order, and of the result. sums: the first, relative to the sum of
    magnitudes; of fp32 additions where None.
    """
    got, expected = computed(arguments).double(), reference(*arguments[:-1], torch.float32).double()
    magnitude = reference(*_magnitudes(arguments), torch.float32).double()
    k, out_dtype = arguments[10], arguments[-1]
    bound = (2.0**-24 * (k + 8) if sums is None else sums) * magnitude
    bound += ROUNDING[out_dtype] * (expected.abs() + bound) + 2.0**-24 * k * magnitude
    assert bool(((got - expected).abs() <= bound + 1e-38).all())


def _magnitudes(arguments: tuple) -> tuple:
    """The same product of magnitudes."""
    a_codes, a_scales, a_tensor, b_codes, b_scales, b_tensor, left, right, *rest = arguments[:-1]
    terms = (x if x is None else x.abs() for x in (left, right))
    return (a_codes & 0x77, a_scales, a_tensor, b_codes & 0x77, b_scales, b_tensor, *terms, *rest)
