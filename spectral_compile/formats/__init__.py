"""FP4 formats in plain torch: the numeric contract, slow and obviously right.

Every fast path (C++ on the CPU, Triton on GPUs) answers to these functions bit for bit.
"""

from spectral_compile.formats.nvfp4 import Quantized, dequantize_nvfp4, quantize_nvfp4

__all__ = ["Quantized", "dequantize_nvfp4", "quantize_nvfp4"]
