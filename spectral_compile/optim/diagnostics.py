"""What a run's weights look like, now and then: stable rank, top singular values, and where the gradient points.

Cheap enough to leave on: one warm power iteration and one product with the gradient for each weight measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from spectral_compile.optim.groups import WIDTH, Grouping
from spectral_compile.optim.parts import Part, parts_of
from spectral_compile.optim.sharding import like, local
from spectral_compile.optim.smoothing import squared_norm
from spectral_compile.optim.subspace import Subspace, power_step, rotated, top_subspace

_ALARM = 0.8  # SJE above this precedes an explosion, as published


@dataclass(frozen=True)
class Spectrum:
    """Of one weight [m, n], or a stack of them, at one step, on its device: reading a value is what waits for it.

    stable_rank [...]: |W|_F^2 / sigma_1^2. singular_values [..., top]. sje [...]: the share of the gradient's energy in
    the top singular directions, sum of (u_i' G v_i)^2 over i <= floor(SR), by |G|_F^2; of those that are tracked, so a
    lower bound where floor(SR) is above `top`. NaN without a gradient.
    """

    name: str
    step: int
    stable_rank: Tensor
    singular_values: Tensor
    sje: Tensor

    def as_dict(self) -> dict[str, Any]:
        """The measurement as JSON-ready data."""
        values = {key: getattr(self, key).tolist() for key in ("stable_rank", "singular_values", "sje")}
        return {"name": self.name, "step": self.step, **values}


class WeightSpectra:
    """Measures the hidden matrices of a `parameter_groups(model)` every so many steps; `latest` has what was found.

    Call `measure` between backward and step, or let `attach` do it. top: directions to track, fewer for smaller
    matrices. callback: is given the list of each measurement. SJE is a ratio, so a gradient that was clipped or
    scaled as a whole gives the same.
    """

    def __init__(
        self,
        grouping: Grouping,
        *,
        every: int = 100,
        top: int = 8,
        callback: Callable[[list[Spectrum]], None] | None = None,
    ) -> None:
        if every < 1 or top < 1:
            raise ValueError("WeightSpectra: 'every' and 'top' are 1 or more")
        self.every, self.top, self.callback = every, top, callback
        self.latest: list[Spectrum] = []
        self._weights: list[tuple[str, torch.nn.Parameter, Part]] = []
        for row in grouping.matrices:
            cut = row.split
            parts = parts_of(row.parameter) if cut is None else parts_of(row.parameter, cut.sizes, cut.dim)
            for place, part in enumerate(parts):
                name = row.names[0] if len(parts) == 1 else f"{row.names[0]}[{place}]"
                self._weights.append((name, row.parameter, part))
        self._tracked: dict[str, Tensor] = {}
        self._steps = 0

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Measure as the optimizer steps, just before it does; returns the handle that ends it."""

        def before_step(*_: Any) -> None:
            if self._steps % self.every == 0:
                self.measure(self._steps)
            self._steps += 1

        return optimizer.register_step_pre_hook(before_step)

    @torch.no_grad()
    def measure(self, step: int) -> list[Spectrum]:
        """Every weight as it is now. No host sync on what is warm but for the [top, top] `eigh` (see `rotated`)."""
        self.latest = [self._measured(name, parameter, part, step) for name, parameter, part in self._weights]
        if self.callback is not None:
            self.callback(self.latest)
        return self.latest

    def _measured(self, name: str, parameter: torch.nn.Parameter, part: Part, step: int) -> Spectrum:
        weight = part.of(local(parameter))
        found = self._top(name, parameter, part, weight)
        stable_rank = squared_norm(weight, part.sharding) / found.s[..., 0].double().square()
        sje = torch.full_like(stable_rank, torch.nan)
        if parameter.grad is not None:
            gradient = part.of(local(like(parameter, parameter.grad))).to(found.U.dtype)
            along = part.sharding.over_all((found.U * (gradient @ found.V)).double().sum(-2)).square()
            counted = torch.arange(along.shape[-1], device=along.device) < stable_rank[..., None].floor()
            energy = squared_norm(gradient, part.sharding)
            sje = torch.where(counted, along, 0.0).sum(-1) / energy
        return Spectrum(name, step, stable_rank.float(), found.s, sje.float())

    def _top(self, name: str, parameter: Tensor, part: Part, weight: Tensor) -> Subspace:
        """The top directions, from where they were at the last measurement."""
        if name not in self._tracked:
            found = top_subspace(parameter, min(self.top, part.m, part.n), part=part)
        else:
            found = rotated(power_step(weight, self._tracked[name], 2, part.sharding), part.sharding)
        # Not what a NaN made of it: the next measurement starts from here.
        self._tracked[name] = torch.where(found.V.isfinite(), found.V, self._tracked.get(name, 0.0))
        return found

    def __rich__(self) -> Table:
        table = Table(title="spectra of the weights" + (f" at step {self.latest[0].step}" if self.latest else ""))
        for heading in ("weight", "stable rank", "sigma_1", f"sigma_{self.top}", "SJE", ""):
            table.add_column(heading, justify="left" if heading in ("weight", "") else "right")
        for found in self.latest:
            # Of a stack, the expert that is worst off.
            rank, sje = found.stable_rank.min().item(), found.sje.max().item()
            ends = (found.singular_values[..., place].max().item() for place in (0, -1))
            mark = "gradient along the top directions" if sje > _ALARM else ""
            table.add_row(escape(found.name), f"{rank:.1f}", *(f"{end:.3g}" for end in ends), f"{sje:.3f}", mark)
        return table

    def __str__(self) -> str:
        console = Console(width=WIDTH)
        with console.capture() as printed:
            console.print(self)
        return printed.get()
