"""Every private import of torch, with its version differences: the one place that a new torch release can break.

`tests/test_torch_contracts.py` states what each of these is expected to do.
"""

import contextlib
import ctypes
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.source import AttrSource, LocalSource
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import CompileContext, TracingContext, detect_fake_mode
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import CppCompileError
from torch._inductor.exc import InvalidCxxCompiler as NoCppCompiler
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

__all__ = [
    "AttrSource",
    "CppCompileError",
    "CustomGraphPass",
    "FakeTensorMode",
    "GraphTransformObserver",
    "NoCppCompiler",
    "OpOverload",
    "ShortenTraceback",
    "aot_autograd",
    "compile_fx",
    "compile_fx_inner",
    "compiled_frame",
    "compiling_as_often_as_asked",
    "cpu_multiplies_bf16",
    "detect_fake_mode",
    "differentiated_outputs",
    "dynamo_source_name",
    "global_offset",
    "graph_input_index",
    "guard_on_attribute",
    "guard_on_identity",
    "in_compiled_autograd",
    "inductor_config",
    "inductor_mode_options",
    "inductor_modes",
    "inductor_option_names",
    "is_strided_shard",
    "load_shared_library",
    "min_cut_rematerialization_partition",
    "replacements",
    "returned_by_forward",
    "root_frame_modules",
    "select_decomp_table",
    "statically_known_true",
    "summary_writer",
    "trace_artifact",
    "without_caches",
]


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products (AMX or AVX512-BF16)."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def in_compiled_autograd() -> bool:
    """True while Dynamo compiles the graph that compiled autograd made of a whole backward."""
    return bool(compiled_autograd.in_compiled_autograd_region)


def guard_on_attribute(module: str, holder: str, attribute: str) -> None:
    """Make Dynamo recompile the frame being compiled once `module.holder.attribute` has another value.

    Does nothing outside Dynamo, where no frame is being compiled.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if TracingContext.try_get() is None:
        return
    try:
        root = InstructionTranslator.current_tx().output.root_tx
    except AttributeError:
        return
    source = AttrSource(AttrSource(root.import_source(module), holder), attribute)
    install_guard(source.make_guard(GuardBuilder.EQUALS_MATCH))


def guard_on_identity(local: str) -> None:
    """Make Dynamo recompile the frame being compiled when its local variable is another object."""
    from torch._dynamo.guards import GuardBuilder, install_guard

    install_guard(LocalSource(local).make_guard(GuardBuilder.ID_MATCH))


def root_frame_modules() -> dict[str, nn.Module]:
    """Modules among the local variables of the frame that Dynamo is compiling, by name; none outside Dynamo."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if TracingContext.try_get() is None:
        return {}
    try:
        values = InstructionTranslator.current_tx().output.root_tx.f_locals
    except AttributeError:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


def dynamo_source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found a graph input, as an expression ("L['self']._parameters['weight']"), or ""."""
    source = getattr(placeholder, "_dynamo_source", None)
    if source is None:
        return ""
    return source.name() if callable(source.name) else source.name


def graph_input_index(placeholder: fx.Node) -> int | None:
    """Which input of the Dynamo graph a placeholder of the AOTAutograd graph stands for; None for tangents."""
    description = placeholder.meta.get("desc")
    return getattr(description, "idx", None) if type(description).__name__ == "PlainAOTInput" else None


def returned_by_forward(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the user's forward returns, less the gradients that a joint graph returns as well."""
    output = graph.output_node()
    nodes = output.args[0] if isinstance(output.args[0], (list, tuple)) else [output.args[0]]
    descriptions = output.meta.get("desc") or [None] * len(nodes)
    return [
        node
        for node, description in zip(nodes, descriptions, strict=True)
        if isinstance(node, fx.Node) and type(description).__name__ != "GradAOTOutput"
    ]


def differentiated_outputs(graph: fx.Graph) -> list[fx.Node]:
    """Of the nodes that the forward returns, those that a backward starts from; all of them where there is none."""
    tangents = [node.meta.get("desc") for node in graph.find_nodes(op="placeholder")]
    starts = [tangent.output for tangent in tangents if type(tangent).__name__ == "TangentAOTInput"]
    output = graph.output_node()
    described = zip(output.args[0], output.meta.get("desc") or (), strict=False)  # type: ignore[arg-type]
    return [node for node, description in described if description in starts] or returned_by_forward(graph)


def inductor_mode_options(mode: str | None) -> Mapping[str, Any]:
    """Inductor's options for a `mode` of torch.compile."""
    from torch._inductor import list_mode_options

    return list_mode_options(mode) if mode and mode != "default" else {}


def inductor_modes() -> list[str]:
    """The names that torch.compile's `mode` takes."""
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def inductor_option_names() -> list[str]:
    """The names of Inductor's options."""
    return list(inductor_config.get_config_copy())


def trace_artifact(name: str, text: str) -> None:
    """Put a text into torch's structured trace (TORCH_TRACE), which tlparse shows."""
    from torch._logging._internal import trace_structured

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=lambda: text,
        expect_trace_id=False,
    )


@contextlib.contextmanager
def replacements(graph: fx.Graph) -> Iterator[dict[str, str]]:
    """Notes, while it lasts, which node each node of a graph is replaced by, by name."""
    found: dict[str, str] = {}
    module = graph.owning_module
    assert module is not None

    def note(old: fx.Node, new: str, user: fx.Node) -> None:
        found[old.name] = new

    module._register_replace_node_hook(note)
    try:
        yield found
    finally:
        module._unregister_replace_node_hook(note)


def compiled_frame() -> int:
    """The number of the code that Dynamo is compiling: the same when it compiles it again for other shapes."""
    current = CompileContext.current_compile_id()
    frame = None if current is None else current.frame_id
    return -1 if frame is None else frame


def summary_writer(folder: str) -> Any:
    """Of TensorBoard's scalars. Raises ImportError without TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)


@contextlib.contextmanager
def compiling_as_often_as_asked() -> Iterator[None]:
    """No limit on how often a frame is compiled, after which Dynamo would leave it alone."""
    from torch._dynamo import config

    with config.patch(recompile_limit=2**31, accumulated_recompile_limit=2**31):
        yield


@contextlib.contextmanager
def without_caches() -> Iterator[None]:
    """Compile afresh: no look-up in the disk caches, below which no pass runs."""
    with inductor_config.patch(force_disable_caches=True):
        yield


def load_shared_library(cpp_source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Load C++ that has a C interface; built once, by Inductor's toolchain into its cache.

    OpenMP and -march=native are on; `flags` come after Inductor's own and win over them. Raises NoCppCompiler where
    there is none.
    """
    from torch._inductor.codecache import CppCodeCache

    # Inductor would probe which vector instructions compile (20 s on an empty cache), for macros not used here.
    parameters = inspect.signature(CppCodeCache.load_async).parameters
    without_probe = {"needs_vec_isa": False} if "needs_vec_isa" in parameters else {}
    return CppCodeCache.load(cpp_source, extra_flags=tuple(flags), **without_probe)


def global_offset(tensor: Any) -> tuple[int, ...]:
    """Where this rank's part of a DTensor begins, along each axis."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1]


def is_strided_shard(placement: Any) -> bool:
    """Whether a DTensor's placement deals an axis out in turns (FSDP 2 around tensor parallelism), not in one piece."""
    from torch.distributed.tensor.placement_types import _StridedShard

    return isinstance(placement, _StridedShard)
