"""Measures of mixture-of-experts layers: what shares a route, how experts differ, what a sequence of tasks forgets.

Pure functions of tensors: they need no compiled model, and no pass needs them.
"""

from spectral_compile.moe.experts import expert_overlap, router_alignment
from spectral_compile.moe.forgetting import backward_transfer, overall_performance
from spectral_compile.moe.routes import (
    EffectiveCompositions,
    effective_compositions,
    route_entropy,
    route_load,
    token_routes,
)

__all__ = [
    "EffectiveCompositions",
    "backward_transfer",
    "effective_compositions",
    "expert_overlap",
    "overall_performance",
    "route_entropy",
    "route_load",
    "router_alignment",
    "token_routes",
]
