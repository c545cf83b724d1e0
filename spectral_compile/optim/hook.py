"""Smoothing that acts by itself: it watches gradients as they are accumulated, and weights when their optimizer steps.

Any optimizer, eager or compiled. The decision is read one step after it fell, so that no step waits for the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from spectral_compile.optim.groups import Grouping
from spectral_compile.optim.parts import Part, parts_of
from spectral_compile.optim.sharding import local, replicas
from spectral_compile.optim.smoothing import DEFAULT, Smoothing, smoothed
from spectral_compile.optim.trigger import Trigger, TriggerState, advance

_TRIGGER = Trigger()


class Smoother:
    """Smooths the hidden matrices of a `parameter_groups(model)` just after their optimizer's step, until `remove`.

    Either one step after `trigger` fired, by the norm of all gradients of the grouping as they were accumulated, before
    any clipping; or, with `every`, at each so many steps. A step counts when an optimizer takes it after a backward:
    those that `GradScaler` skips do not. scale: what gradients are multiplied by, `scaler.get_scale`, if anything;
    without it, a scale that doubles looks like a gradient that does.

    Ranks decide alike, by one sum of a number over all of them a step. Under DDP that number is of the gradients as
    each rank accumulated them, before they are averaged: larger than the average's norm, and a ratio all the same.

    What the optimizer owns must be the parameters themselves, as it is with autocast and with FSDP 2. `log` has, for
    each call that smoothed, the step (from 0) and |dW| / |W| of each matrix, as tensors.

    Raises ValueError where `every` is not 1 or more, or no matrix is there to smooth.
    """

    def __init__(
        self,
        grouping: Grouping,
        smoothing: Smoothing = DEFAULT,
        trigger: Trigger = _TRIGGER,
        *,
        every: int | None = None,
        scale: Callable[[], float | Tensor] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Smoother: 'every' cannot be {every}; it is 1 or more steps")
        if not grouping.matrices:
            raise ValueError("Smoother: none of these parameters is a hidden matrix")
        self.smoothing, self.trigger, self.every, self._scale = smoothing, trigger, every, scale
        self.log: list[tuple[int, dict[str, Tensor]]] = []
        self.steps = 0
        self._matrices: list[tuple[str, Tensor, list[Part]]] = []
        for row in grouping.matrices:
            cut = () if row.split is None else (row.split.sizes, row.split.dim)
            self._matrices.append((row.names[0], row.parameter, parts_of(row.parameter, *cut)))
        device = local(self._matrices[0][1]).device
        self.state = TriggerState.new(device)
        self._pending = _Later(torch.zeros((), dtype=torch.bool, device=device))
        self._squares: dict[Tensor, Tensor] = {}  # of each gradient, as it was accumulated last
        self._fresh = False  # a backward came since the last step
        self._left: set[Tensor] = set()  # matrices still to be smoothed in this step
        self._handles = [row.parameter.register_post_accumulate_grad_hook(self._accumulated) for row in grouping.rows]
        self._handles.append(register_optimizer_step_post_hook(self._stepped))

    def remove(self) -> None:
        """Act no more."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What resuming to the bit takes: tensors and a number."""
        return {"steps": self.steps, "trigger": tuple(self.state), "pending": self._pending.value}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`'s."""
        device = self.state.average.device
        self.steps = saved["steps"]
        self.state = TriggerState(*(value.to(device) for value in saved["trigger"]))
        self._pending = _Later(saved["pending"].to(device))

    @torch.no_grad()
    def _accumulated(self, parameter: Tensor) -> None:
        self._fresh = True
        if self.every is None and parameter.grad is not None:
            gradient = local(parameter.grad)
            wide = torch.promote_types(gradient.dtype, torch.float32)
            # Each rank's share of the sum over all of them: a gradient that r ranks hold counts once.
            share = torch.linalg.vector_norm(gradient, dtype=wide).double().square() / replicas(parameter)
            self._squares[parameter] = share.to(self.state.average.device)

    @torch.compiler.disable
    @torch.no_grad()
    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After a step of any optimizer at all; several may share the parameters."""
        owned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        mine = [matrix for matrix in self._matrices if matrix[1] in owned]
        if not mine:
            return
        if self._fresh:
            self._fresh = False
            self._left = {matrix[1] for matrix in self._matrices} if self._due() else set()
            if self._left:
                self.log.append((self.steps, {}))
            self.steps += 1
        for name, parameter, parts in mine:
            if parameter in self._left:
                self._left.remove(parameter)
                self._smooth(name, parameter, parts)

    def _due(self) -> bool:
        """Whether to smooth after this step; moves the trigger on."""
        if self.every is not None:
            return (self.steps + 1) % self.every == 0
        due = self._pending.read()
        squares = torch.stack(list(self._squares.values())).sum()
        self._squares.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares)
        norm = squares.sqrt() / (1.0 if self._scale is None else self._scale())
        fires, self.state = advance(self.trigger, self.state, norm)
        self._pending = _Later(fires)
        return due

    def _smooth(self, name: str, parameter: Tensor, parts: list[Part]) -> None:
        for place, part in enumerate(parts):
            found = smoothed(parameter, self.smoothing, part)
            part.of(local(parameter)).copy_(found.weight)
            self.log[-1][1][name if len(parts) == 1 else f"{name}[{place}]"] = found.change


class _Later:
    """A boolean on its way from the device; by the time it is read, a step later, it has long arrived."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._arrived = None
        if value.is_cuda:
            self._host = value.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        if self._arrived is None:
            return bool(self.value)
        self._arrived.synchronize()
        return bool(self._host)
