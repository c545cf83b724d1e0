"""Smoothing that acts by itself: it watches gradients as they are accumulated, and weights when their optimizer steps.

Any optimizer, eager or compiled. `WeightSmoothing` among a compiled model's passes does the same unasked.
"""

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from spectral_compile.optim.acting import Acting, Scale, Watched
from spectral_compile.optim.groups import Grouping
from spectral_compile.optim.parts import parts_of
from spectral_compile.optim.sharding import local
from spectral_compile.optim.smoothing import DEFAULT, Smoothing
from spectral_compile.optim.trigger import Trigger

_TRIGGER = Trigger()


class Smoother(Acting):
    """Smooths the hidden matrices of a `parameter_groups(model)` just after their optimizer's step, until `remove`.

    Either one step after `trigger` fired, by the norm of all gradients of the grouping as they were accumulated, before
    any clipping; or, with `every`, at each so many steps. A step counts when an optimizer takes it after a backward:
    those that `GradScaler` skips do not. scale: what gradients are multiplied by, `scaler.get_scale`, if anything;
    without it, a scale that doubles looks like a gradient that does.

    Ranks decide alike, by one sum of a number over all of them a step. Under DDP that number is of the gradients as
    each rank accumulated them, before they are averaged: larger than the average's norm, and a ratio all the same. The
    sum waits for every rank: where ranks step unequally (pipeline stages, experts without a token), use `every`.

    What the optimizer owns must be the parameters themselves, as it is with autocast and with FSDP 2. `log` has, for
    each call that smoothed, the step (from 0) and |dW| / |W| of each matrix, as tensors. Parameters are held weakly.

    Raises ValueError where `every` is not 1 or more, or no matrix is there to smooth.
    """

    def __init__(
        self,
        grouping: Grouping,
        smoothing: Smoothing = DEFAULT,
        trigger: Trigger = _TRIGGER,
        *,
        every: int | None = None,
        scale: Scale | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Smoother: 'every' cannot be {every}; it is 1 or more steps")
        if not grouping.matrices:
            raise ValueError("Smoother: none of these parameters is a hidden matrix")
        super().__init__(smoothing, trigger, every, scale, local(grouping.matrices[0].parameter).device)
        self._watched: list[Watched] = []
        for row in grouping.rows:
            cut = () if row.split is None else (row.split.sizes, row.split.dim)
            parts = parts_of(row.parameter, *cut) if row.method == "spectra" else []
            self._watched.append(Watched(row.names[0], row.parameter, parts))
            self._watched[-1].measures = every is None
        self._left: set[Watched] = set()  # still to be smoothed in this step
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def remove(self) -> None:
        """Act no more."""
        self._handle.remove()
        for watched in self._watched:
            watched.remove()

    @torch.compiler.disable
    @torch.no_grad()
    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After a step of any optimizer at all; several may share the parameters."""
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        mine = [one for one in self._watched if one.parts and id(one.parameter) in owned]
        if not mine:
            return
        if any(one.fresh for one in self._watched):
            self._left = {one for one in self._watched if one.parts} if self.due(self._watched) else set()
        for one in mine:
            if one in self._left:
                self._left.remove(one)
                self.smooth(one)
