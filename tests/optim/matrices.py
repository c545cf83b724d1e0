"""Matrices with a spectrum to order."""

import torch
from torch import Tensor

SPECTRA = {
    "flat": lambda r: torch.ones(r, dtype=torch.float64) + torch.linspace(0.1, 0, r, dtype=torch.float64),
    "decaying": lambda r: 1 / torch.arange(1, r + 1, dtype=torch.float64),
    "clustered": lambda r: torch.where(torch.arange(r) < 4, 10.0, 1.0).double() * torch.linspace(1.01, 1, r).double(),
    "spiked": lambda r: torch.cat([torch.tensor([1e3, 300.0, 50.0]), torch.linspace(1, 0.5, r - 3)]).double(),
}


def matrix(m: int, n: int, spectrum: str = "decaying", dtype: torch.dtype = torch.float32) -> Tensor:
    """[m, n] with random singular vectors."""
    r = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(size, r, dtype=torch.float64))[0] for size in (m, n))
    return ((U * SPECTRA[spectrum](r)) @ V.mT).to(dtype)


def orthogonality(Q: Tensor) -> float:
    """The largest entry of Q'Q - 1."""
    gram = Q.double().mT @ Q.double()
    return (gram - torch.eye(Q.shape[-1], dtype=torch.float64)).abs().max().item()
