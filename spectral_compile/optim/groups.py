"""Which parameters are hidden matrices: a model's parameters by role, as groups for `Spectra` and as a table to read.

Read from the modules that own the parameters. What is not clearly a hidden matrix goes to AdamW: an embedding updated
as a matrix does harm, a matrix updated by AdamW does not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from spectral_compile.graph.roles import HEAD_NAMES
from spectral_compile.optim.parts import parts_of
from spectral_compile.validation import check_name

Role = Literal["hidden", "experts", "embedding", "head", "router", "norm", "bias", "other"]
ROLES: tuple[str, ...] = get_args(Role)
WIDTH = 150

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_ROUTER_CLASS = re.compile(r"(router|gate|gating)$", re.IGNORECASE)
_ROUTER_NAME = re.compile(r"(^|\.)(router|gate)$")
_EXPERTS = re.compile(r"expert", re.IGNORECASE)
_FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj|gate_up|up_gate|w12|w13", re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """How a parameter falls into matrices: sizes along dim -2 (the outputs of a linear) or -1."""

    sizes: tuple[int, ...]
    dim: int = -2


@dataclass(frozen=True)
class Assigned:
    """One parameter: under which names the model has it, its role and why, and which update it gets."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: Role
    method: str
    reason: str
    split: Split | None
    parameter: nn.Parameter

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to all but norms, biases and what else has one axis."""
        return self.role not in ("norm", "bias") and len(self.shape) > 1


@dataclass(frozen=True)
class Grouping:
    """The groups, when iterated, of what `Spectra` takes; a table of what went where, when printed."""

    rows: tuple[Assigned, ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        groups: dict[Any, dict[str, Any]] = {}
        for row in self.rows:
            split = {} if row.split is None else {"split": row.split.sizes, "split_dim": row.split.dim}
            settings = {"method": row.method, **split, **({} if row.decays else {"weight_decay": 0.0})}
            group = groups.setdefault(tuple(settings.items()), {"params": [], **settings})
            group["params"].append((row.names[0], row.parameter))
        return iter(groups.values())

    @property
    def matrices(self) -> tuple[Assigned, ...]:
        """The parameters that hold hidden matrices."""
        return tuple(row for row in self.rows if row.method == "spectra")

    def __rich__(self) -> Table:
        numbers = [sum(row.parameter.numel() for row in rows) for rows in (self.matrices, self.rows)]
        share = f"{numbers[0] / max(1, numbers[1]):.1%} of {numbers[1]:,} parameters"
        table = Table(title=f"{len(self.matrices)} of {len(self.rows)} tensors are hidden matrices, {share}")
        for heading in ("parameter", "shape", "role", "update", "because"):
            table.add_column(heading)
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            parts = "" if row.split is None else f", in parts {' + '.join(map(str, row.split.sizes))}"
            table.add_row(*map(escape, (", ".join(row.names), shape, row.role, row.method + parts, row.reason)))
        return table

    def __str__(self) -> str:
        console = Console(width=WIDTH)
        with console.capture() as printed:
            console.print(self)
        return printed.get()


def parameter_groups(
    model: nn.Module,
    *,
    roles: Mapping[str, str] | None = None,
    split: Mapping[str, int | Sequence[int] | Split] | None = None,
) -> Grouping:
    """The trainable parameters of a model by role: `Spectra(parameter_groups(model))`. Tied parameters come once.

    Hidden matrices are the weights of linears, and 3-D parameters [experts, m, n] in a module called after experts.
    Told apart from them: embeddings, also where the head is tied to them; output heads, by
    `get_output_embeddings()`, by name, or as the last linear, as wide as the vocabulary; routers, by class or, beside
    a module `experts`, by name. Norms, biases and other vectors do not decay.

    roles: for regular expressions, searched in parameter names, a role in place of what would be found here: what a
    compiled graph knows better, and what a model with names of its own needs. split: likewise, the number of equal
    parts, or their sizes, of fused QKV, gate and up; what looks fused and is not split is noted in the table. (That of
    `nn.MultiheadAttention` is.) Raises ValueError for an expression that no parameter matches, for a role that does
    not exist or fit, and for a split that does not fit.
    """
    roles, split = dict(roles or {}), dict(split or {})
    for role in roles.values():
        check_name("role", role, ROLES)
    uses: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            uses.setdefault(parameter, []).append(name)
    names = [name for found in uses.values() for name in found]
    for expression in (*roles, *split):
        if not any(re.search(expression, name) for name in names):
            raise ValueError(f"no trainable parameter's name matches {expression!r}; names are like {names[0]!r}")
    heads = _heads(model)
    rows = []
    for parameter, found in uses.items():
        given = next((role for e, role in roles.items() if any(re.search(e, name) for name in found)), None)
        role, reason = (given, "said so") if given else _role(model, parameter, found, heads)
        if role in ("hidden", "experts") and parameter.dim() != (2 if role == "hidden" else 3):
            raise ValueError(f"{found[0]!r} of shape {list(parameter.shape)} cannot have the role {role!r}")
        method, cut = "adamw", None
        if role in ("hidden", "experts"):
            method, cut = "spectra", _split(model, parameter, found[0], split)
            if cut is None and _FUSED.search(found[0]):
                reason += "; looks fused: consider split="
        rows.append(Assigned(tuple(found), tuple(parameter.shape), role, method, reason, cut, parameter))  # type: ignore[arg-type]
    return Grouping(tuple(rows))


def _role(
    model: nn.Module, parameter: nn.Parameter, names: Sequence[str], heads: Mapping[nn.Module, str]
) -> tuple[str, str]:
    """The role of a parameter, by the first of its uses that is telling, and the reason."""
    found = [_role_in(model, parameter, name, heads) for name in names]
    first = next((use for use in found if use[0] in ("embedding", "head")), found[0])
    return first if len(names) == 1 else (first[0], f"{first[1]}, tied")


def _role_in(model: nn.Module, parameter: nn.Parameter, name: str, heads: Mapping[nn.Module, str]) -> tuple[str, str]:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    kind = type(owner).__name__
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding", f"weight of {kind}"
    if isinstance(owner, _NORMS) or kind.endswith("Norm"):
        return "norm", f"of {kind}"
    if attribute.endswith("bias"):
        return "bias", "called so"
    if parameter.dim() < 2:
        return "other", f"{parameter.dim()}-D"
    if _is_router(model, owner, path):
        return "router", f"weight of {kind}, called {path.rpartition('.')[2]!r}"
    if parameter.dim() == 3 and (_EXPERTS.search(kind) or _EXPERTS.search(name)):
        return "experts", f"3-D, in {kind}"
    if _is_linear(owner) and attribute == "weight":
        return ("head", heads[owner]) if owner in heads else ("hidden", f"weight of {kind}")
    if isinstance(owner, nn.MultiheadAttention):
        return "hidden", f"projection of {kind}"
    return "other", f"{parameter.dim()}-D, of {kind}: its use is not known"


def _heads(model: nn.Module) -> dict[nn.Module, str]:
    """The linears that are output heads, each with the reason."""
    heads: dict[nn.Module, str] = {}
    linears = {name: module for name, module in model.named_modules() if _is_linear(module)}
    for module in model.modules():
        declared = getattr(module, "get_output_embeddings", None)
        head = declared() if callable(declared) else None
        if isinstance(head, nn.Module):
            heads[head] = "get_output_embeddings()"
    for name, module in linears.items():
        if HEAD_NAMES.search(name):
            heads.setdefault(module, "called so")
    vocabularies = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    last = next(reversed(linears.values()), None)
    if last is not None and getattr(last, "out_features", None) in vocabularies:
        heads.setdefault(last, "the last linear, as wide as the vocabulary")
    return heads


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """The linear of GPT-2 in `transformers`, whose weight is [in, out]; told without importing that."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_router(model: nn.Module, owner: nn.Module, path: str) -> bool:
    if _ROUTER_CLASS.search(type(owner).__name__):
        return True
    parent = model.get_submodule(path.rpartition(".")[0])
    return bool(_ROUTER_NAME.search(path)) and hasattr(parent, "experts")


def _split(
    model: nn.Module, parameter: nn.Parameter, name: str, asked: Mapping[str, int | Sequence[int] | Split]
) -> Split | None:
    """Into which matrices a parameter falls; None for one."""
    owner = model.get_submodule(name.rpartition(".")[0])
    dim = -1 if _is_conv1d(owner) else -2
    split = next((value for expression, value in asked.items() if re.search(expression, name)), None)
    if split is None:
        fused = isinstance(owner, nn.MultiheadAttention) and name.endswith("in_proj_weight")
        split = 3 if fused else None
    if split is None:
        return None
    if isinstance(split, int):
        size = parameter.shape[dim] // max(split, 1)
        split = (size,) * split
    cut = split if isinstance(split, Split) else Split(tuple(split), dim)
    try:
        parts_of(parameter, cut.sizes, cut.dim)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    return cut
