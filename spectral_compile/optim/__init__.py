"""What happens when weights move: the Spectra optimizer, singularity smoothing, and how the weights' spectra fare."""

from spectral_compile.optim.attached import OptimizerSmoothing, smoothing_of
from spectral_compile.optim.diagnostics import Spectrum, WeightSpectra
from spectral_compile.optim.groups import Grouping, Split, parameter_groups
from spectral_compile.optim.hook import Smoother
from spectral_compile.optim.smoothing import Smoothing, smoothed
from spectral_compile.optim.spectra import Spectra
from spectral_compile.optim.trigger import Trigger, TriggerState, advance

__all__ = [
    "Grouping",
    "OptimizerSmoothing",
    "Smoother",
    "Smoothing",
    "Spectra",
    "Spectrum",
    "Split",
    "Trigger",
    "TriggerState",
    "WeightSpectra",
    "advance",
    "parameter_groups",
    "smoothed",
    "smoothing_of",
]
