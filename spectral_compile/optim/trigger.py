"""When to smooth: where the gradient's norm leaves its own moving average behind. All of it on the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_compile.validation import settings


@settings
class Trigger:
    """Fires where |g| / EMA(|g|) is above `threshold`.

    The average moves by `alpha` a step, not on one that fires. None fires before step `warmup`, nor within `cooldown`
    steps of one that did. Norms are to be measured before clipping: a clipped norm never reaches the threshold.

    Source: parametric singularity smoothing (PSS).
    """

    threshold: float = 2.5
    alpha: float = 0.1
    warmup: int = 50
    cooldown: int = 30

    def __post_init__(self) -> None:
        if self.threshold <= 1:
            raise ValueError("'threshold' is a ratio to the moving average, above 1")
        if not 0 < self.alpha <= 1:
            raise ValueError("'alpha' is above 0 and at most 1")
        if self.warmup < 0 or self.cooldown < 0:
            raise ValueError("'warmup' and 'cooldown' are numbers of steps, 0 or more")


class TriggerState(NamedTuple):
    """0-d tensors, fp32 and three int64. rest: steps until it may fire again; fired: how often it has.

    A plain tuple of tensors: put it into a checkpoint as it is.
    """

    average: Tensor
    steps: Tensor
    rest: Tensor
    fired: Tensor

    @classmethod
    def new(cls, device: Any = None) -> "TriggerState":
        """Before the first step."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(torch.zeros((), device=device), zero, zero.clone(), zero.clone())


def advance(trigger: Trigger, state: TriggerState, norm: Tensor) -> tuple[Tensor, TriggerState]:
    """Whether this step fires [0-d bool], and the state after it. norm: of the gradient before clipping, 0-d.

    No host sync: read the answer one step later, when the copy has arrived. A norm of NaN or infinity neither fires
    nor counts as a step. Compilable; nothing is changed in place.
    """
    norm = norm.to(state.average.dtype)
    counts = norm.isfinite()
    above = norm > trigger.threshold * state.average
    fires = counts & above & (state.steps >= trigger.warmup) & (state.rest == 0)
    moved = torch.where(state.steps == 0, norm, torch.lerp(state.average, norm, trigger.alpha))
    rest = torch.where(fires, trigger.cooldown, (state.rest - 1).clamp(min=0))
    after = TriggerState(
        torch.where(counts & ~fires, moved, state.average),
        state.steps + counts.long(),
        torch.where(counts, rest, state.rest),
        state.fired + fires.long(),
    )
    return fires, after
