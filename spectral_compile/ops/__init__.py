"""The spectral:: operators: what a rewritten graph is written in.

Each has a schema, a fake kernel (shapes, dtypes and strides exact) and a plain-torch reference, so a graph that holds
them runs anywhere with the same numbers. `lowering/` gives devices faster kernels under the same names.
"""

from spectral_compile.ops import (
    center,
    dequantize,
    grouped_mean,
    grouped_quantize,
    grouped_split_mm,
    hadamard,
    measure,
    product,
    quantize,
    quantize_pair,
    round,
    scaled_grouped_mm,
    scaled_mm,
    split_mm,
    token_mean,
)

__all__ = [
    "center",
    "dequantize",
    "grouped_mean",
    "grouped_quantize",
    "grouped_split_mm",
    "hadamard",
    "measure",
    "product",
    "quantize",
    "quantize_pair",
    "round",
    "scaled_grouped_mm",
    "scaled_mm",
    "split_mm",
    "token_mean",
]
