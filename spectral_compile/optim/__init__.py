"""What happens when weights move: the Spectra optimizer, and singularity smoothing of what any optimizer moved."""

from spectral_compile.optim.spectra import Spectra

__all__ = ["Spectra"]
