"""Triton kernels behind the spectral:: operators on NVIDIA GPUs. Importing this package does not import Triton."""
