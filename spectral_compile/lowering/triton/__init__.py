"""Triton kernels behind the spectral:: operators on NVIDIA GPUs. Nothing here is imported before a GPU is in play."""
