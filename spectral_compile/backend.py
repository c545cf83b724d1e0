"""The backend: a Dynamo graph in, a compiled callable out. The whole story on one page.

Every side effect lives here, before the caches are asked: on a hit nothing below `compile_fx` runs.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import spectral_compile.ops  # noqa: F401  # registers the operators: cached code calls them without passing by here
from spectral_compile import config, configure, policy, registry, scopes, watch
from spectral_compile._torch import (
    compile_fx,
    guard_on_attribute,
    guard_on_identity,
    in_compiled_autograd,
    inductor_config,
    inductor_mode_options,
    inductor_modes,
    inductor_option_names,
    root_frame_modules,
)
from spectral_compile.config import Options
from spectral_compile.errors import SpectralRuntimeError, SpectralValueError
from spectral_compile.graph import facts as graph_facts
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.lowering import cpu, gpu
from spectral_compile.lowering.carrier import AUTO, capability_of, check_carrier
from spectral_compile.lowering.eager import compile_eager
from spectral_compile.measuring.sessions import Session
from spectral_compile.passes.headwise_router import headwise_router
from spectral_compile.passes.weight_smoothing import (
    Asked,
    splits_without_effect,
    stepped_here,
    updated_by_hand,
    weight_smoothing,
)
from spectral_compile.pipeline import SEED, STEP, PassManager, PostGradPasses, steps
from spectral_compile.randomness import next_seed
from spectral_compile.recipes import HeadwiseRouter, QuantizeFP4, WeightSmoothing
from spectral_compile.report.dump import Dump, Traced
from spectral_compile.report.folder import NUMERICS
from spectral_compile.rules import without_effect
from spectral_compile.scopes import Scopes
from spectral_compile.validation import check_name

Compiled = Callable[..., Any]
OwnInput = Callable[[bool, Sequence[Any]], Tensor]
_HOOK = "joint_custom_pre_pass"
_WITHOUT_FP4 = (WeightSmoothing, HeadwiseRouter)  # passes that do their work where nothing is quantised, too


def spectral(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The function behind `torch.compile(model, backend="spectral", mode=..., options=...)`.

    options: see `spectral_compile.config.Options`; mode: as for Inductor. Raises ValueError for a bad option and
    RuntimeError where a C++ compiler is needed and missing.
    """
    parsed = config.parse_options(options)
    _check_what_is_for_inductor(parsed, mode)
    guard_on_attribute(watch.__name__, watch.watch(options, scopes.all_holders(gm)), "key")
    if configure.any_module():  # then what is compiled for one module is not for another of its class
        for name in root_frame_modules():
            guard_on_identity(name)
    if config.disabled_by_environment() == (config.ALL,) or in_compiled_autograd():
        return _compile(gm, example_inputs, parsed, mode, joint_pass=None)

    settings = scopes.gather(gm, parsed)
    _check_together(settings, _device(example_inputs))
    traced = Traced(gm) if parsed.dump else None
    _apply_to_dynamo_graph(gm, settings.base, traced)
    facts = graph_facts.gather(gm, example_inputs)
    if not facts.has_weights_that_multiply:
        _warn_of_updates_without_smoothing(gm, example_inputs, settings)
    if not facts.has_weights_that_multiply or not _anything_to_do(settings):
        return _compile(gm, example_inputs, parsed, mode, joint_pass=None)
    if facts.differentiates:
        warnings.warn(
            "spectral: torch.func.grad inside the graph: it stays in high precision, and no weight is smoothed",
            stacklevel=2,
        )
        return _compile(gm, example_inputs, parsed, mode, joint_pass=None)

    _warn_of_rules_without_effect(settings.base, facts)
    asked = _weights_to_smooth(gm, example_inputs, facts, settings)
    with _watched(traced, "headwise_router", settings):
        routers = headwise_router(gm, settings)
    dump = _new_dump(traced, parsed)
    own = _own_inputs(settings, _device(example_inputs), dump)
    places = {name: len(example_inputs) + i for i, name in enumerate(own)}
    manager = PassManager(facts, settings, places, dump, [plan for _, plan, _ in asked], routers)
    with _more_inputs(gm, own):
        compiled = _compile(gm, [*example_inputs, *(make(False, ()) for make in own.values())], parsed, mode, manager)

    def run(*arguments: Any) -> Any:
        training = torch.is_grad_enabled()
        if asked and training:
            ask(asked, arguments)
        return compiled(*arguments, *(make(training, arguments) for make in own.values()))

    if asked:
        from spectral_compile.optim.attached import ask  # whoever smooths nothing needs none of it
    return run if own or asked else compiled


def _weights_to_smooth(
    gm: fx.GraphModule, example_inputs: Sequence[Any], facts: GraphFacts, settings: Scopes
) -> list[Asked]:
    """Attached at each training call: of one graph there may be several modules, and a cache hit runs no pass."""
    asked = weight_smoothing(gm, example_inputs, facts, settings)
    for expression in splits_without_effect(asked):
        warnings.warn(
            f"spectral: WeightSmoothing: split {expression!r} matches no parameter of this graph", stacklevel=3
        )
    return asked


def _warn_of_updates_without_smoothing(gm: fx.GraphModule, example_inputs: Sequence[Any], settings: Scopes) -> None:
    """Weights are smoothed by a hook of their optimizer, and which they are is read from the graph of the model."""
    if not any(options.find(WeightSmoothing) for options in settings.all_options):
        return
    from spectral_compile.optim.attached import is_watched

    stepped = stepped_here(gm)
    if stepped and not any(map(is_watched, stepped)):
        what = "a compiled optimizer step by itself: ask for it where the model is compiled, whose graph tells weights"
    elif updated_by_hand(gm, example_inputs):
        what = "parameters that compiled code updates without a torch.optim.Optimizer: use one, or optim.smoothed"
    else:
        return
    warnings.warn(f"spectral: WeightSmoothing has no effect on {what}", stacklevel=3)


def _own_inputs(settings: Scopes, device: torch.device, dump: Dump | None) -> dict[str, OwnInput]:
    """What the graph is given on top at each call, by name, and what makes it: of whether the call has a backward, and
    of its other arguments.

    Randomness is an argument, and so is whether a call is measured: neither is state that a cached graph would hold.
    """
    own: dict[str, OwnInput] = {}
    if any(policy.rounds_stochastically(o.resolved(), o.all_rules()) for o in settings.all_options):
        # Without a backward nothing is rounded stochastically: an evaluation between two steps changes neither.
        unused = torch.zeros((), dtype=torch.int64, device=device)
        own[SEED] = lambda training, _: next_seed(device) if training else unused
    numerics = settings.base.numerics
    if numerics is not None and settings.base.runs("numerics"):
        files = [Path(numerics.file)] if numerics.file else []
        files += [dump.folder / NUMERICS] if dump is not None else []
        own[STEP] = Session(numerics.every, files, numerics.tensorboard).step
    return own


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Options,
    mode: str | None,
    joint_pass: PassManager | None,
) -> Compiled:
    if options.codegen == "eager":
        return compile_eager(gm, example_inputs, joint_pass)
    patches = {**inductor_mode_options(mode), **dict(options.inductor)}
    if joint_pass is None:
        return compile_fx(gm, example_inputs, config_patches=patches or None)  # type: ignore[return-value]
    if patches.get(_HOOK, getattr(inductor_config, _HOOK)) is not None:
        raise SpectralValueError(f"Inductor's {_HOOK} is taken by this backend: unset it")
    patches[_HOOK] = joint_pass
    if joint_pass.dump is not None:
        patches["force_disable_caches"] = True  # on a hit no pass would run
    device = _device(example_inputs)
    if device.type == "cpu":
        _load_cpu_kernels()
    elif device.type == "cuda":
        gpu.prepare(device)
    compile_part = PostGradPasses(joint_pass.scopes.base, device.type, joint_pass.dump)
    return compile_fx(gm, example_inputs, compile_part, config_patches=patches)  # type: ignore[return-value]


def _new_dump(traced: Traced | None, options: Options) -> Dump | None:
    if traced is None:
        return None
    try:
        dump = Dump(Path(options.dump))
    except OSError as error:
        raise SpectralValueError(f"option 'dump': {options.dump!r} is no folder to write to: {error}") from None
    dump.begin(traced, options)
    return dump


def _check_what_is_for_inductor(options: Options, mode: str | None) -> None:
    try:
        check_name("mode", mode or "default", inductor_modes())
        valid = inductor_option_names() if options.inductor else []
        for name, _ in options.inductor:
            check_name("option of 'inductor'", name, valid)
    except ValueError as error:
        raise SpectralValueError(str(error)) from None
    if options.codegen == "eager" and (options.inductor or mode not in (None, "default")):
        warnings.warn("spectral: mode and 'inductor' have no effect with codegen 'eager'", stacklevel=3)


def _load_cpu_kernels() -> None:
    try:
        cpu.prepare()
    except cpu.NoCompilerError as error:
        raise SpectralRuntimeError(str(error)) from None


def _anything_to_do(settings: Scopes) -> bool:
    ours = any(options.resolved() for options in settings.all_options)
    return ours or registry.has_registered("joint") or registry.has_registered("post_grad")


def _check_together(settings: Scopes, device: torch.device) -> None:
    """What decorators say may not go with what else is said, nor a carrier with a format or the device."""
    capability = capability_of(device)
    for options in settings.all_options:
        passes, rules = options.resolved(), options.all_rules()
        try:
            policy.validate(passes, rules)
            if options.carrier != AUTO:
                for formats in policy.product_formats(passes, rules):
                    check_carrier(options.carrier, formats, device.type, capability)
        except ValueError as error:
            raise SpectralValueError(str(error)) from None


def _apply_to_dynamo_graph(gm: fx.GraphModule, options: Options, traced: Traced | None) -> None:
    for name, step in steps("dynamo", options, {}):
        with _watched(traced, name):
            for module in gm.modules():  # checkpointed regions are graphs of their own
                if isinstance(module, fx.GraphModule):
                    step(module.graph)
                    module.graph.lint()
                    module.recompile()


def _watched(
    traced: Traced | None, name: str, settings: Scopes | None = None
) -> contextlib.AbstractContextManager[None]:
    """What a pass changes in the Dynamo graph is dumped: of ours, where it was asked for."""
    ours = settings is None or any(options.find(HeadwiseRouter) for options in settings.all_options)
    return contextlib.nullcontext() if traced is None or not ours else traced.watched(name)


@contextlib.contextmanager
def _more_inputs(gm: fx.GraphModule, names: Iterable[str]) -> Iterator[None]:
    """More placeholders while the graph is compiled; Dynamo, which calls with its own inputs, never sees them."""
    added: list[fx.Node] = []
    for name in names:
        with gm.graph.inserting_after(gm.graph.find_nodes(op="placeholder")[-1]):
            added.append(gm.graph.placeholder(name))
        added[-1]._dynamo_source = None  # AOTAutograd asks; there is nothing to guard
    gm.recompile()
    try:
        yield
    finally:
        for node in added:
            gm.graph.erase_node(node)
        gm.recompile()


def _device(inputs: Sequence[Any]) -> torch.device:
    """Where the parameters are: other inputs may still be moved there by the graph."""
    tensors = sorted((x for x in inputs if isinstance(x, Tensor)), key=lambda x: not isinstance(x, nn.Parameter))
    return tensors[0].device if tensors else torch.device("cpu")


def _warn_of_rules_without_effect(options: Options, facts: GraphFacts) -> None:
    rules = options.own_rules()
    if options.find(QuantizeFP4) is None and (rules or any(type(p) not in _WITHOUT_FP4 for p in options.passes)):
        what = "rules" if rules else "passes"
        warnings.warn(f"spectral: {what} have no effect: recipe {options.recipe!r} quantises nothing", stacklevel=2)
        return
    for rule in without_effect(rules, sorted(facts.layers)):
        warnings.warn(f"spectral: the rule for {rule} matches no layer of this graph", stacklevel=2)
