"""Fast kernels behind the spectral:: operators on the CPU: the reference's codes and scales, bit for bit.

Importing registers them; they serve from `prepare()` on, until then the operators run as plain torch.
"""

from spectral_compile.lowering.cpu import kernels
from spectral_compile.lowering.cpu.build import NoCompilerError, prepare

__all__ = ["NoCompilerError", "prepare"]

kernels.register()
