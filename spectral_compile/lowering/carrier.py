"""Which arithmetic carries FP4 products on a device.

An E2M1 value times its block scale has at most 6 significant bits: exact in bf16 and in fp32, so FP4 is *emulated
exactly* where the hardware has no FP4 unit. Only the order of the fp32 sums differs. MXFP4's scales are powers of two:
less the largest along k its values are E5M2 numbers (`formats/e5m2.py`), which Ada and Hopper multiply twice as fast.
"""

import torch

from spectral_compile._torch import cpu_multiplies_bf16

AUTO = "auto"
CARRIERS = ("native", "fp8", "bf16", "fp32")

Capability = tuple[int, int]  # a GPU's compute capability, (9, 0) for sm_90
Formats = tuple[str, str]  # of a product's operands

_BLACKWELL = (10, 12)  # sm_100, sm_103; sm_120, sm_121
_HAVE_FP8 = ((8, 9), (9, 0))


def choose_carrier(
    device: torch.device, out_dtype: torch.dtype, formats: Formats, asked: str, capability: Capability | None
) -> str:
    """One of CARRIERS for a product on `device` of operands in these formats, with results in `out_dtype`; `asked` is
    the user's choice or "auto". capability: of a GPU. Raises ValueError for a choice that there is not.

    A GPU's own FP4 units, or its FP8 units where they give the same values; else bf16 where the device multiplies it
    fast. A bf16 product on a CPU returns bf16 sums, so results in another type need fp32, whatever is asked; so do
    operands that were left as they are.
    """
    if asked != AUTO:
        check_carrier(asked, formats, device.type, capability)
    if "identity" in formats or (device.type == "cpu" and out_dtype != torch.bfloat16):
        return "fp32"
    if asked != AUTO:
        return asked
    if not why_not("native", formats, device.type, capability):
        return "native"
    # Blackwell's FP8 units are no faster with MXFP4 than its FP4 units.
    if capability in _HAVE_FP8 and not why_not("fp8", formats, device.type, capability):
        return "fp8"
    return "bf16" if device.type != "cpu" or cpu_multiplies_bf16() else "fp32"


def check_carrier(carrier: str, formats: Formats, device_type: str, capability: Capability | None) -> None:
    """Raise a ValueError that says why, and what there is, where a carrier cannot carry such a product."""
    reason = why_not(carrier, formats, device_type, capability)
    if reason:
        others = (AUTO, *(name for name in CARRIERS if not why_not(name, formats, device_type, capability)))
        raise ValueError(
            f"option 'carrier' cannot be {carrier!r} here: {reason}; it can be {', '.join(map(repr, others))}"
        )


def why_not(carrier: str, formats: Formats, device_type: str, capability: Capability | None) -> str:
    """Why a carrier cannot carry a product; empty where it can. Operands left as they are are carried in fp32."""
    if carrier in ("bf16", "fp32") or "identity" in formats:
        return ""
    if device_type != "cuda" or capability is None:
        return f"it is arithmetic of NVIDIA GPUs, and the model is on {device_type!r}"
    if carrier == "native":
        if capability[0] not in _BLACKWELL:
            return f"{architecture(capability)} has no FP4 units, which came with Blackwell"
        same = formats[0] == formats[1]
        return "" if same else f"FP4 units multiply operands of one format, not {formats[0]} by {formats[1]}"
    if capability < min(_HAVE_FP8):
        return f"{architecture(capability)} has no FP8 units, which came with Ada and Hopper"
    other = next((format for format in formats if format != "mxfp4"), None)
    return f"FP8 holds values whose scales are powers of two, as mxfp4's are and {other}'s are not" if other else ""


def architecture(capability: Capability) -> str:
    """As NVIDIA's compilers call it."""
    return "sm_{}{}".format(*capability)


def capability_of(device: torch.device) -> Capability | None:
    """A GPU's; None for all other devices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def capabilities() -> tuple[Capability, ...]:
    """Those of all GPUs: what a plan depends on. None where this process has used no GPU, and plans for none."""
    if not torch.cuda.is_initialized():
        return ()
    return tuple(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
