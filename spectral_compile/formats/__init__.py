"""FP4 formats in plain torch: the numeric contract, slow and obviously right.

Every fast path (C++ on the CPU, Triton on GPUs) answers to these functions bit for bit.
"""

from spectral_compile.formats.quantized import FORMATS, Format, Quantized, dequantize, quantize

__all__ = ["FORMATS", "Format", "Quantized", "dequantize", "quantize"]
