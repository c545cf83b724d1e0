"""Spectra: momentum whose few dominant singular directions, the spike, are brought down to the level of the rest.

Almost all of a gradient's energy sits in a handful of singular directions; a step scaled to them hardly moves the
others. One warm power iteration finds them, and the step is scaled to the tail.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from spectral_compile.optim.parts import Part, parts_of
from spectral_compile.optim.sharding import WHOLE, Sharding, like, local, right_factor
from spectral_compile.optim.subspace import power_steps, start_parts
from spectral_compile.validation import check_name

METHODS = ("spectra", "adamw")
# The tail's energy is the difference of two fp32 sums: below this share of the whole it is their rounding.
_SMALLEST_TAIL = 1e-5
_SMALLEST_RMS = 1e-30  # a momentum below it is none: dividing by it would overflow
# Makes an entry of the update as large as an AdamW step's usually is, so that one learning rate serves both
# (Moonlight: "Muon is Scalable for LLM Training", 2025).
_RMS = 0.2


class Spectra(torch.optim.Optimizer):
    """Spike-aware momentum for hidden matrices, AdamW for the rest.

    ```
    M    = momentum M + G
    P    = M V;  U = qr(P) with diag R > 0;  Z = M' U;  s = column lengths of Z;  V = Z / s        `iterations` times
    tail = sqrt((|M|_F^2 - sum s^2) / (min(m, n) - k))                                k = max(1, round(rank min(m, n)))
    O    = M + U (tail V' - diag(s) V')                                 RMS(O) = tail / sqrt(max(m, n)), exactly
    W   <- (1 - lr weight_decay) W - .2 lr sqrt(max(m, n)) O / tail
    ```
    So the update's root mean square is .2 lr whatever the gradient's size; where M has rank k or less, as in the first
    steps, there is no tail, and the step is M itself at that root mean square. Zero momentum takes no step.

    params: parameters, or groups, best those of `parameter_groups(model)`, which tells hidden matrices from embeddings,
    heads, norms and biases. A group's `method` is "spectra" (the default; 2-D parameters [m, n], or 3-D stacks
    [experts, m, n], each expert a matrix of its own) or "adamw" (`lr`, `weight_decay`, `betas`, `eps`). `split` cuts
    its parameters along `split_dim` (-2 or -1) into matrices of these sizes: fused QKV, gate and up.

    lr: a float, or a tensor where `step` is compiled and the rate changes (a float would compile anew). capturable:
    as in torch's optimizers, for CUDA graphs. Gradients are made negative by `maximize`.

    State: "M", as the parameter, and "V" [..., n, k], both in the parameter's type and, under FSDP 2 or tensor
    parallelism, DTensors: 49.25 % less than Adam's for square matrices and k = 1.5 %. Products and sums are in fp32.
    The update of a bf16 parameter is rounded to bf16: keep fp32 parameters, and let autocast do the rest.

    A NaN in a gradient reaches M and W as with every optimizer of torch (use `GradScaler`, or
    `clip_grad_norm_(..., error_if_nonfinite=True)`), but not V. Raises ValueError for complex parameters, sparse
    gradients, parameters that are no matrices, and values out of range.

    Source: Spectra, a spike-aware optimizer, as methods.md restates it; what becomes of M without a tail is our choice.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        *,
        rank: float = 0.015,
        iterations: int = 1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        method: str = "spectra",
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "rank": rank,
            "iterations": iterations,
            "betas": betas,
            "eps": eps,
            "method": method,
            "maximize": maximize,
            "capturable": capturable,
            "split": None,
            "split_dim": -2,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises ValueError for what this group's method cannot update."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; what `closure` returns, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            first: list[Tensor] = []  # M, or AdamW's exp_avg
            second: list[Tensor] = []  # V, or AdamW's exp_avg_sq
            steps: list[Tensor] = []
            self._init_group(group, params, grads, first, second, steps)
            if not params:
                continue
            if group["method"] == "adamw":
                _adamw(group, params, grads, first, second, steps)
            else:
                _spectra(group, params, grads, first, second)
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        """Fills the lists; makes the state of a parameter that has a gradient for the first time.

        By this name: Dynamo runs it, rather than traces it, when `step` is compiled.
        """
        spectra = group["method"] == "spectra"
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise ValueError("Spectra takes no sparse gradients; make the embedding with sparse=False")
            state = self.state[parameter]
            gradient = like(parameter, parameter.grad)
            if not state and spectra:
                state["M"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["V"] = _started(group, parameter, gradient)
            elif not state:
                device = parameter.device if group["capturable"] else None
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            params.append(parameter)
            grads.append(gradient)
            first.append(state["M" if spectra else "exp_avg"])
            second.append(state["V" if spectra else "exp_avg_sq"])
            if not spectra:
                steps.append(state["step"])


class Clamped(NamedTuple):
    """The momentum with its spike brought down is `M + U diag(change) V'`, of root mean square `rms` [...].

    change [..., k] is tail - s, and 0 where there is no tail.
    """

    U: Tensor
    change: Tensor
    V: Tensor
    rms: Tensor


def clamped(
    momenta: Sequence[Tensor], V: Tensor, m: int, n: int, sharding: Sharding = WHOLE, iterations: int = 1
) -> Clamped:
    """For momenta [..., m, n], a list of b of one shape (of which this rank has parts), and V [b, ..., n, k]."""
    found = power_steps(momenta, V, sharding, iterations)
    norms = torch.stack([torch.linalg.vector_norm(M, dim=(-2, -1), dtype=found.s.dtype) for M in momenta])
    whole = sharding.over_all(norms.double().square())
    tail_energy = whole - found.s.double().square().sum(-1)
    k, smaller, larger = V.shape[-1], min(m, n), max(m, n)
    has_tail = (tail_energy > _SMALLEST_TAIL * whole) & (smaller > k)
    tail = (tail_energy.clamp(min=0) / max(1, smaller - k)).sqrt()
    change = torch.where(has_tail[..., None], tail[..., None] - found.s, 0.0).to(found.s.dtype)
    rms = torch.where(has_tail, tail / larger**0.5, (whole / (m * n)).sqrt())
    return Clamped(found.U, change, found.V, rms.to(found.s.dtype))


def _spectra(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], bases: list[Tensor]
) -> None:
    """One step of the matrices of a group, those of one shape together."""
    weights, M, V = ([local(t) for t in tensors] for tensors in (params, momenta, bases))
    torch._foreach_mul_(M, group["momentum"])
    torch._foreach_add_(M, [local(g) for g in grads], alpha=-1 if group["maximize"] else 1)

    batches: dict[Any, list[tuple[Part, int, Tensor]]] = {}
    for i, parameter in enumerate(params):
        parts = parts_of(parameter, group["split"], group["split_dim"])
        columns = V[i].split([part.rank(group["rank"]) for part in parts], dim=-1)
        for place, (part, basis) in enumerate(zip(parts, columns, strict=True)):
            # Whole extents and the place in the parameter, not this rank's extents: all ranks must batch alike.
            key = (place, part.m, part.n, parameter.shape, parameter.dtype, parameter.device, part.sharding)
            batches.setdefault(key, []).append((part, i, basis))
    for batch in batches.values():
        _step_of_one_shape(group, batch, weights, M)


def _step_of_one_shape(
    group: dict[str, Any], batch: list[tuple[Part, int, Tensor]], weights: list[Tensor], momenta: list[Tensor]
) -> None:
    part = batch[0][0]
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    M = [p.of(momenta[i]).to(wide) for p, i, _ in batch]
    V = torch.stack([basis for _, _, basis in batch])
    U, change, V, rms = clamped(M, V, part.m, part.n, part.sharding, group["iterations"])
    size = torch.where(rms > _SMALLEST_RMS, _RMS * group["lr"] / rms, 0.0)
    decay = 1 - group["lr"] * group["weight_decay"]
    for j, (p, i, basis) in enumerate(batch):
        update = M[j] + (U[j] * change[j][..., None, :]) @ V[j].mT
        weight = p.of(weights[i])
        if weight.dtype == wide:
            weight.mul_(decay).addcmul_(update, size[j][..., None, None], value=-1)
        else:  # rounded once
            weight.copy_(weight.to(wide) * decay - size[j][..., None, None] * update)
        basis.copy_(V[j])


def _adamw(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        params,
        grads,
        averages,
        squares,
        [],
        steps,
        capturable=group["capturable"],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _started(group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> Tensor:
    """The first V: a randomised SVD of the first gradient, each part's columns beside the last's."""
    columns = []
    for part in parts_of(parameter, group["split"], group["split_dim"]):
        columns.append(start_parts([part.of(local(gradient))], part.rank(group["rank"]), part)[0])
    V = torch.cat(columns, dim=-1).to(parameter.dtype)
    return right_factor(parameter, V, transposed=group["split"] is not None and group["split_dim"] == -1)


def _check(group: dict[str, Any]) -> None:
    """Raises ValueError for what a group cannot be or hold."""
    check_name("method", group["method"], METHODS)
    for name, low, high in (("lr", 0, None), ("weight_decay", 0, None), ("eps", 0, None), ("momentum", 0, 1)):
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1 or name != "lr":
                raise ValueError(f"Spectra: {name!r} cannot be a tensor of shape {list(value.shape)}")
        elif not low <= value or (high is not None and not value < high):
            raise ValueError(f"Spectra: {name!r} cannot be {value}; it is {low} or more{', less than 1' * bool(high)}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"Spectra: 'betas' cannot be {group['betas']}; each is 0 or more, less than 1")
    if not 0 < group["rank"] <= 1:
        raise ValueError(
            f"Spectra: 'rank' cannot be {group['rank']}; it is a share of min(m, n), above 0 and at most 1"
        )
    if not (isinstance(group["iterations"], int) and group["iterations"] >= 1):
        raise ValueError(f"Spectra: 'iterations' cannot be {group['iterations']!r}; it is 1 or more")
    for parameter in group["params"]:
        if parameter.is_complex():
            raise ValueError("Spectra takes no complex parameters; train torch.view_as_real of them")
        if group["method"] == "spectra" and parameter.dim() not in (2, 3):
            shape = list(parameter.shape)
            raise ValueError(
                f"Spectra takes matrices [m, n] and stacks of them [experts, m, n], not a parameter of shape {shape}; "
                "groups from spectral_compile.optim.parameter_groups(model) give such parameters to AdamW"
            )
        if group["split"] is not None:
            parts_of(parameter, group["split"], group["split_dim"])
