"""What an optimizer's step takes, apart from training: seconds in turns, and the bytes of its state.

Gradients are random and stay the same: no optimizer here does more or less for other values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.bench_timing import Spread, kernel_times, paired_ratio
from spectral_compile.optim import Spectra, parameter_groups

ADAMW, MUON, SPECTRA = "adamw", "muon", "spectra"
NAMES = (ADAMW, MUON, SPECTRA)
RANKED = "spectra-rank-"  # and a share: Spectra with another rank than its default
BETAS, DECAY = (0.9, 0.95), 0.1  # the demo's; Spectra's and Muon's own momentum is .95 in both


class Optimizer(Protocol):
    """What `Together` and every optimizer of torch have."""

    param_groups: list[dict[str, Any]]
    state: Mapping[Tensor, dict[str, Any]]

    def step(self) -> Any: ...


class Together:
    """Several optimizers, of other parameters each, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all of them."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Of all of them."""
        return {parameter: held for part in self.parts for parameter, held in part.state.items()}

    def step(self) -> None:
        """One after the other."""
        for part in self.parts:
            part.step()


def made(name: str, model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """One of `NAMES` for a model: hidden matrices to Muon or Spectra, the rest to AdamW, at one learning rate.

    Muon's steps are scaled as Spectra's are, to a root mean square of .2 lr (`match_rms_adamw`), so one grid of rates
    serves all three. AdamW is the fused one where it is an optimizer of torch's own. Norms do not decay.
    "spectra-rank-0.1" is Spectra with that rank. Raises ValueError for any other name.
    """
    grouping = parameter_groups(model)
    if name == SPECTRA or name.startswith(RANKED):
        rank = {"rank": float(name.removeprefix(RANKED))} if name != SPECTRA else {}
        return Spectra(grouping, lr=lr, weight_decay=DECAY, betas=BETAS, **rank)
    if name not in NAMES:
        raise ValueError(f"no optimizer {name!r}; there is {', '.join(NAMES)}, and {RANKED}0.1 or another rank")
    hidden = [row.parameter for row in grouping.matrices] if name == MUON else []
    taken = {id(parameter) for parameter in hidden}
    rest = [row for row in grouping.rows if id(row.parameter) not in taken]
    groups = [
        {"params": [row.parameter for row in rest if row.decays], "weight_decay": DECAY},
        {"params": [row.parameter for row in rest if not row.decays], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    parts: list[torch.optim.Optimizer] = []
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True))
    if hidden:
        parts.insert(0, torch.optim.Muon(hidden, lr=lr, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"))
    return parts[0] if len(parts) == 1 else Together(*parts)


class Matrices(nn.Module):
    """Hidden matrices [m, n] and nothing else, called so that `parameter_groups` takes them for what they are."""

    def __init__(self, shapes: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for m, n in shapes)


@dataclass(frozen=True)
class Cost:
    """Of one optimizer's step. milliseconds; times_faster: than Muon's, round by round; state: bytes of its tensors;
    share: of AdamW's state.
    """

    milliseconds: Spread
    times_faster: Spread
    state: int
    share: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def costs(build: Callable[[], nn.Module], rounds: int, names: Sequence[str] = NAMES) -> dict[str, Cost]:
    """For each optimizer, of the same model with the same gradients; the names hold AdamW and Muon."""
    steps: dict[str, Callable[[], object]] = {}
    held: dict[str, int] = {}
    for name in names:
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = made(name, model)
        optimizer.step()
        held[name], steps[name] = state_bytes(optimizer), optimizer.step
    times = kernel_times(steps, rounds)
    return {
        name: Cost(
            Spread.of([1e3 * s for s in seconds]),
            paired_ratio(times[MUON], seconds),
            held[name],
            held[name] / held[ADAMW],
        )
        for name, seconds in times.items()
    }


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors that an optimizer keeps between steps, step counts included."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
