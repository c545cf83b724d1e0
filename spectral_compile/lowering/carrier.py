"""Which arithmetic carries FP4 products on a device.

An E2M1 value times its block scale has at most 6 significant bits: exact in bf16 and in fp32, so FP4 is *emulated
exactly* where the hardware has no FP4 unit. Only the order of the fp32 sums differs.
"""

import torch

from spectral_compile._torch import cpu_multiplies_bf16

AUTO = "auto"


def choose_carrier(device: torch.device, out_dtype: torch.dtype, formats: tuple[str, str], asked: str) -> str:
    """ "bf16" or "fp32" for a product on `device` of operands in these formats, with results in `out_dtype`; `asked` is
    the user's choice or "auto".

    bf16 where the device multiplies it fast. A bf16 product on a CPU returns bf16 sums, so results in another type
    need fp32, whatever is asked; so do operands that were left as they are.
    """
    if "identity" in formats or (device.type == "cpu" and out_dtype != torch.bfloat16):
        return "fp32"
    if asked != AUTO:
        return asked
    return "bf16" if device.type != "cpu" or cpu_multiplies_bf16() else "fp32"
