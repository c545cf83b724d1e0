"""Four-bit training as a compiler pass: `torch.compile(model, backend="spectral")`."""

from spectral_compile.backend import spectral
from spectral_compile.config import RECIPES, MeanCenter, QuantizeFP4
from spectral_compile.randomness import manual_seed

__version__ = "0.1.0"
__all__ = ["RECIPES", "MeanCenter", "QuantizeFP4", "__version__", "manual_seed", "spectral"]
