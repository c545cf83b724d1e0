"""When to smooth and what was smoothed, apart from how gradients and steps are noticed: `hook.py` and `attached.py`.

The decision is read one step after it fell, so that no step waits for the device.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_compile.optim.parts import Part
from spectral_compile.optim.sharding import local, replicas
from spectral_compile.optim.smoothing import Smoothing, smoothed
from spectral_compile.optim.trigger import Trigger, TriggerState, advance

Scale = Callable[[], float | Tensor]


class Watched:
    """A parameter, held weakly, whose gradient is measured as it is accumulated, before any clipping.

    parts: the matrices it holds that are to be smoothed; none where it only counts for the norm. fresh: a backward
    came since the last step. norm: of this rank's share of the gradient, 0-d, so that over parameters and ranks the
    squares add up.
    """

    def __init__(
        self, name: str, parameter: Tensor, parts: Sequence[Part] = (), gone: Callable[[Any], None] | None = None
    ) -> None:
        self.name, self.parts = name, list(parts)
        self.fresh, self.measures = False, True
        self.norm: Tensor | None = None
        self._parameter = weakref.ref(parameter, gone)
        self._share = replicas(parameter) ** -0.5  # a gradient that r ranks hold counts once
        self._handle = parameter.register_post_accumulate_grad_hook(self._accumulated)

    @property
    def parameter(self) -> Tensor | None:
        """None once nobody has it any more."""
        return self._parameter()

    def remove(self) -> None:
        """Measure no more."""
        self._handle.remove()

    @torch.no_grad()
    def measure(self, gradient: Tensor) -> None:
        """Take the norm of a gradient, in place of the one that it adds to."""
        gradient = local(gradient)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        self.norm = norm if self._share == 1.0 else norm * self._share

    def _accumulated(self, parameter: Tensor) -> None:
        self.fresh = True
        if self.measures and parameter.grad is not None:
            self.measure(parameter.grad)


class Acting:
    """Smooths when it is time to: one step after `trigger` fired, or at every `every` steps; keeps a log of it."""

    def __init__(
        self, smoothing: Smoothing, trigger: Trigger, every: int | None, scale: Scale | None, device: Any
    ) -> None:
        self.smoothing, self.trigger, self.every, self.scale = smoothing, trigger, every, scale
        self.log: list[tuple[int, dict[str, Tensor]]] = []
        self.steps = 0
        self.state = TriggerState.new(device)
        self._pending = _Later(torch.zeros((), dtype=torch.bool, device=device))

    def state_dict(self) -> dict[str, Any]:
        """What resuming to the bit takes: tensors and a number."""
        return {"steps": self.steps, "trigger": tuple(self.state), "pending": self._pending.value}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`'s."""
        device = self.state.average.device
        self.steps = saved["steps"]
        self.state = TriggerState(*(value.to(device) for value in saved["trigger"]))
        self._pending = _Later(saved["pending"].to(device))

    def due(self, watched: Iterable[Watched]) -> bool:
        """Whether to smooth after this step, of which these are all gradients; one step on, and a line in the log."""
        norms = [one.norm.to(self.state.average.device) for one in watched if one.norm is not None]
        for one in watched:
            one.norm, one.fresh = None, False
        due = self._fired(norms) if self.every is None else (self.steps + 1) % self.every == 0
        if due:
            self.log.append((self.steps, {}))
        self.steps += 1
        return due

    def smooth(self, watched: Watched) -> None:
        """One parameter in place, and into the log."""
        parameter = watched.parameter
        assert parameter is not None
        changes = self.log[-1][1]
        for place, part in enumerate(watched.parts):
            found = smoothed(parameter, self.smoothing, part)
            part.of(local(parameter)).copy_(found.weight)
            name = watched.name if len(watched.parts) == 1 else f"{watched.name}[{place}]"
            while name in changes:  # two blocks compiled apart call their weights alike
                name += "'"
            changes[name] = found.change

    def _fired(self, norms: list[Tensor]) -> bool:
        """What the trigger said one step ago; moves it on."""
        due = self._pending.read()
        # Few operations on the device for each gradient: the rest is done here, once for all of them.
        if not norms:  # which other ranks may have
            norms = [torch.zeros_like(self.state.average)]
        squares = torch.stack(norms).double().square().sum()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Of all ranks, each at each step: one that steps less often, as a pipeline stage may, would hang the rest.
            torch.distributed.all_reduce(squares)
        norm = squares.sqrt() / (1.0 if self.scale is None else self.scale())
        fires, self.state = advance(self.trigger, self.state, norm)
        self._pending = _Later(fires)
        return due


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
