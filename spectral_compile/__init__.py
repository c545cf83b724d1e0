"""Four-bit training as a compiler pass: `torch.compile(model, backend="spectral")`."""

from typing import Any

from spectral_compile.backend import spectral
from spectral_compile.configure import configure, exclude
from spectral_compile.measuring.sessions import Measurements, numerics
from spectral_compile.randomness import manual_seed
from spectral_compile.recipes import (
    RECIPES,
    Hadamard,
    HeadwiseRouter,
    MeanCenter,
    Numerics,
    Operand,
    QuantizeFP4,
    Rule,
    WeightSmoothing,
)
from spectral_compile.registry import register_pass, unregister_pass
from spectral_compile.report.explain import Explanation, explain

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Explanation",
    "Hadamard",
    "HeadwiseRouter",
    "MeanCenter",
    "Measurements",
    "Numerics",
    "Operand",
    "QuantizeFP4",
    "Rule",
    "WeightSmoothing",
    "__version__",
    "configure",
    "exclude",
    "explain",
    "manual_seed",
    "numerics",
    "register_pass",
    "spectral",
    "unregister_pass",
]


def __getattr__(name: str) -> Any:
    """`spectral_compile.optim` and `.moe` are imported when asked for: a backend needs neither."""
    if name in ("moe", "optim"):
        import importlib

        return importlib.import_module(f"spectral_compile.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
