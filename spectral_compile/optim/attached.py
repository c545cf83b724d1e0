"""What `WeightSmoothing` attaches: watches the parameters that a compiled graph trains, and acts as they are stepped.

Which graph asks for what is said anew at each training call, so graphs of one model may share parameters, be compiled
again or make way for others: a weight is smoothed where the last forward before its step asked for it.
"""

import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from spectral_compile.optim.acting import Acting, Scale, Watched
from spectral_compile.optim.parts import parts_of
from spectral_compile.optim.sharding import local
from spectral_compile.passes.weight_smoothing import Asked
from spectral_compile.plan import WeightPlan
from spectral_compile.recipes import WeightSmoothing

_UNSTEPPED = 200  # backward passes: more than anyone accumulates


class OptimizerSmoothing:
    """Of the weights that one optimizer steps: a trigger, of the norm of their gradients, for each of the settings.

    scale: what gradients are multiplied by, `scaler.get_scale` of a `GradScaler`; set it where there is one. log: for
    each call that smoothed, the optimizer's step (from 0) and |dW| / |W| of each weight, as tensors.
    """

    def __init__(self) -> None:
        self.scale: Scale | None = None
        self._acting: dict[WeightSmoothing, Acting] = {}
        self._saved: dict[str, Any] = {}

    @property
    def log(self) -> list[tuple[int, dict[str, Tensor]]]:
        """Of all settings, by step."""
        return sorted((entry for acting in self._acting.values() for entry in acting.log), key=lambda entry: entry[0])

    @property
    def steps(self) -> int:
        """How many steps counted."""
        return max((acting.steps for acting in self._acting.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        """What resuming to the bit takes: tensors and numbers."""
        return {**self._saved, **{repr(asked): acting.state_dict() for asked, acting in self._acting.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`'s, at any time before the first step; what has other settings starts afresh."""
        self._saved = dict(saved)
        for asked, acting in self._acting.items():
            if repr(asked) in self._saved:
                acting.load_state_dict(self._saved.pop(repr(asked)))

    def stepped(self, asked: WeightSmoothing, watched: Sequence["_Attached"]) -> None:
        """After a step of these parameters, all asked for alike."""
        acting = self._acting.get(asked)
        if acting is None:
            parameter = watched[0].parameter
            assert parameter is not None
            device = local(parameter).device
            acting = self._acting[asked] = Acting(asked.smoothing, asked.trigger, asked.every, None, device)
            if (saved := self._saved.pop(repr(asked), None)) is not None:
                acting.load_state_dict(saved)
        acting.scale = self.scale
        if acting.due(watched):
            for one in watched:
                acting.smooth(one)


def smoothing_of(optimizer: Optimizer) -> OptimizerSmoothing:
    """What `WeightSmoothing` does when this optimizer steps: its log, and its state for a checkpoint."""
    if optimizer not in _of_optimizer:
        _of_optimizer[optimizer] = OptimizerSmoothing()
    return _of_optimizer[optimizer]


def ask(asked: Iterable[Asked], arguments: Sequence[Any]) -> None:
    """A training call of a compiled graph begins, with these inputs: watch its parameters until their next step.

    asked: by place among the inputs, what is done to a parameter, and the settings.
    """
    for index, plan, settings in asked:
        parameter = arguments[index]
        watched = _watched.get(id(parameter))
        if watched is None or watched.parameter is not parameter:
            watched = _watched[id(parameter)] = _attach(parameter, plan)
        if watched.plan is not plan:
            watched.replan(plan)
        watched.asked, watched.measures = settings, settings.every is None


def is_watched(parameter: Tensor) -> bool:
    """Whether a graph ever asked for this parameter."""
    found = _watched.get(id(parameter))
    return found is not None and found.parameter is parameter


class _Attached(Watched):
    """plan: of the graph that asked last. asked: the settings, from a training call until the step after it."""

    def __init__(self, parameter: Tensor, plan: WeightPlan, gone: Any) -> None:
        super().__init__(plan.name, parameter, (), gone)
        self.plan: WeightPlan | None = None
        self.asked: WeightSmoothing | None = None
        self.measures = False  # until asked
        self._refused = False
        self._backwards = 0

    def replan(self, plan: WeightPlan) -> None:
        """Follow another graph's plan. Whatever once was an embedding stays one: tied weights may be in two graphs."""
        parameter = self.parameter
        assert parameter is not None
        self.plan, self.name = plan, plan.name
        self._refused |= plan.refused
        cut = (plan.sizes, plan.dim) if plan.sizes else ()
        self.parts = [] if plan.reason or self._refused else parts_of(parameter, *cut)

    def catch_up(self) -> None:
        """Before a step: a backward inside compiled code accumulates by itself, and calls no hook."""
        parameter = self.parameter
        if not self.fresh and parameter is not None and parameter.grad is not None:
            self.fresh = True
            if self.measures:
                self.measure(parameter.grad)

    def stepped(self) -> None:
        """Not asked for until the next training call."""
        self.asked, self.measures, self.fresh, self.norm, self._backwards = None, False, False, None, 0

    def _accumulated(self, parameter: Tensor) -> None:
        super()._accumulated(parameter)
        self._backwards += 1
        if self._backwards == _UNSTEPPED and self.parts:
            warnings.warn(
                f"spectral: WeightSmoothing had no effect in {_UNSTEPPED} backward passes: no torch.optim.Optimizer"
                " that owns the compiled graph's parameters has stepped (copies of them, shards and updates without"
                " an optimizer are not seen)",
                stacklevel=2,
            )


def _attach(parameter: Tensor, plan: WeightPlan) -> _Attached:
    key = id(parameter)

    def gone(reference: Any) -> None:
        found = _watched.get(key)
        if found is not None and found.parameter is None:  # an id may belong to another by now
            del _watched[key]
            _hook(bool(_watched))

    _hook(True)
    return _Attached(parameter, plan, gone)


@torch.compiler.disable
@torch.no_grad()
def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """After a step of any optimizer at all."""
    together: dict[WeightSmoothing, list[_Attached]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            one = _watched.get(id(parameter))
            if one is None or one.asked is None or one.parameter is not parameter:
                continue
            one.catch_up()
            if one.fresh:
                together.setdefault(one.asked, []).append(one)
    for asked, watched in together.items():
        smoothing_of(optimizer).stepped(asked, watched)
        for one in watched:
            one.stepped()


def _hook(wanted: bool) -> None:
    """One hook on all optimizers, as long as there is something to watch."""
    global _handle
    if wanted and _handle is None:
        _handle = register_optimizer_step_post_hook(_stepped)
    elif not wanted and _handle is not None:
        _handle.remove()
        _handle = None


_watched: dict[int, _Attached] = {}  # by id of the parameter
_of_optimizer: weakref.WeakKeyDictionary[Optimizer, OptimizerSmoothing] = weakref.WeakKeyDictionary()
_handle: Any = None
