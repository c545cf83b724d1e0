"""What this package relies on of torch beyond its public interface: one test for each thing in `_torch.py`.

A test that fails here on a new torch names the assumption that no longer holds.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import LocalSource
from torch._functorch._aot_autograd.descriptors import ForwardTokenAOTInput, PlainAOTInput
from torch._inductor import config as inductor_config
from torch._inductor import cpp_builder
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from spectral_compile import _torch
from spectral_compile.pipeline import observe

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_every_name_of_the_module_has_a_contract_here() -> None:
    source = Path(__file__).read_text()
    missing = [name for name in _torch.__all__ if not re.search(rf"_torch\.{name}\b", source)]
    assert not missing


class Traced:
    """A backend that keeps what it is given, and runs graphs by torch's interpreter."""

    def __init__(self) -> None:
        self.dynamo: list[fx.GraphModule] = []
        self.joint: list[fx.GraphModule] = []
        self.compiled: list[tuple[str, fx.GraphModule]] = []
        self.partition_arguments: list[set[str]] = []

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.dynamo.append(gm)
        backend = _torch.aot_autograd(
            fw_compiler=self._compiler("forward"),
            bw_compiler=self._compiler("backward"),
            inference_compiler=self._compiler("inference"),
            partition_fn=self._partition,
            decompositions=_torch.select_decomp_table(),
        )
        return backend(gm, inputs)

    def _partition(self, joint: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        self.joint.append(joint)
        self.partition_arguments.append(set(kwargs))
        return _torch.min_cut_rematerialization_partition(joint, inputs, **kwargs)

    def _compiler(self, kind: str) -> Callable[..., Any]:
        def compiler(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            self.compiled.append((kind, gm))

            def run(arguments: list[Any]) -> Any:
                return fx.Interpreter(gm).boxed_run(arguments)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 12), nn.Linear(12, 6, bias=False)])

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.blocks[0](x))
        return self.blocks[1](hidden) + shift, hidden


def train_step() -> tuple[Traced, TwoLinears, Tensor]:
    """One compiled forward and backward of TwoLinears, what its backend saw, and the input."""
    traced, model = Traced(), TwoLinears()
    x = torch.randn(5, 8, requires_grad=True)
    out, hidden = torch.compile(model, backend=traced, fullgraph=True)(x, torch.ones(6))
    (out.sum() + hidden.sum()).backward()
    return traced, model, x


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    return gm.graph.find_nodes(op="placeholder")


def test_aot_autograd_partitions_a_training_graph_and_runs_it_rightly() -> None:
    traced, model, x = train_step()
    assert [kind for kind, _ in traced.compiled] == ["forward", "backward"]
    assert len(traced.joint) == 1
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    out, hidden = model(x, torch.ones(6))
    (out.sum() + hidden.sum()).backward()
    for got, expected in zip(gradients, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        torch.testing.assert_close(got, expected)


def test_aot_autograd_gives_a_graph_without_backward_to_the_inference_compiler() -> None:
    traced = Traced()
    with torch.no_grad():
        torch.compile(TwoLinears(), backend=traced)(torch.randn(5, 8), torch.ones(6))
    assert [kind for kind, _ in traced.compiled] == ["inference"]
    assert not traced.joint


def test_aot_autograd_passes_to_the_partitioner_what_min_cut_wants() -> None:
    traced, _, _ = train_step()
    assert "num_fwd_outputs" in traced.partition_arguments[0]


def test_min_cut_rematerialization_partition_splits_by_forward_outputs_and_tangents() -> None:
    traced, _, _ = train_step()
    forward, backward = (gm for _, gm in traced.compiled)
    assert not [n for n in placeholders(forward) if "tangent" in n.name]
    assert [n.name for n in placeholders(backward) if "tangent" in n.name]
    assert len(backward.graph.output_node().args[0]) == len(placeholders(forward))


def test_select_decomp_table_leaves_products_of_linears_as_mm_and_addmm() -> None:
    traced, _, _ = train_step()
    targets = [node.target for node in traced.joint[0].graph.nodes]
    assert targets.count(aten.addmm.default) == 1
    assert targets.count(aten.mm.default) == 5  # fprop without bias; dgrad and wgrad of both
    assert aten.t.default not in targets


def test_joint_graphs_tag_backward_nodes_and_pair_them_with_their_forward() -> None:
    traced, _, _ = train_step()
    products = [n for n in traced.joint[0].graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]
    backward = [n for n in products if n.meta.get("partitioner_tag") == "is_backward"]
    assert len(products) - len(backward) == 2
    assert len(backward) == 4
    forward = {n.meta["seq_nr"] for n in products if n not in backward}
    assert {n.meta["seq_nr"] for n in backward} == forward
    assert all("nn_module_stack" in n.meta for n in products if n not in backward)
    assert all("fwd_nn_module_stack" in n.meta for n in backward)


def test_dynamo_source_name_is_the_python_expression_of_an_input() -> None:
    traced, _, _ = train_step()
    names = [_torch.dynamo_source_name(node) for node in placeholders(traced.dynamo[0])]
    weights = [name for name in names if name.endswith("._parameters['weight']")]
    assert len(weights) == 2
    assert "._modules['blocks']._modules['0']._parameters['weight']" in weights[0]
    assert len([name for name in names if name.startswith("L[") and "_parameters" not in name]) == 2


def test_dynamo_source_name_is_empty_without_a_source() -> None:
    assert _torch.dynamo_source_name(fx.Graph().placeholder("x")) == ""


def test_graph_input_index_counts_dynamos_inputs_and_tangents_have_none() -> None:
    traced, _, _ = train_step()
    names = {node.name: _torch.graph_input_index(node) for node in placeholders(traced.joint[0])}
    primals = [index for name, index in names.items() if name.startswith("primals")]
    assert primals == list(range(len(placeholders(traced.dynamo[0]))))
    assert [index for name, index in names.items() if name.startswith("tangents")] == [None, None]


def test_graph_input_index_is_none_for_inputs_of_aot_autograds_own() -> None:
    placeholder = fx.Graph().placeholder("x")
    for description, index in ((PlainAOTInput(3), 3), (ForwardTokenAOTInput(3), None)):
        placeholder.meta["desc"] = description
        assert _torch.graph_input_index(placeholder) == index


def test_returned_by_forward_is_the_users_results_less_gradients() -> None:
    traced, _, _ = train_step()
    joint = traced.joint[0].graph
    returned = _torch.returned_by_forward(joint)
    assert [tuple(node.meta["val"].shape) for node in returned] == [(5, 6), (5, 12)]
    assert len(joint.output_node().args[0]) > 2  # gradients are there, and were left out


def test_returned_by_forward_is_everything_where_nothing_is_described() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output((x, None, y))
    assert _torch.returned_by_forward(graph) == [x, y]
    single = fx.Graph()
    z = single.placeholder("z")
    single.output(z)
    assert _torch.returned_by_forward(single) == [z]


def test_guard_on_attribute_recompiles_once_the_attribute_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = type("Holder", (), {"key": "a"})()
    module = ModuleType("guarded_by_the_contract_test")
    module.holder = holder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    compiles: list[str] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiles.append(holder.key)
        _torch.guard_on_attribute(module.__name__, "holder", "key")
        return gm.forward

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    for key in ("a", "a", "b", "b", "a"):
        holder.key = key
        compiled(torch.ones(2))
    assert compiles == ["a", "b"]  # and the code for "a" is found again


def test_guard_on_attribute_does_nothing_outside_dynamo() -> None:
    _torch.guard_on_attribute("spectral_compile.config", "no_such_holder", "key")


def test_AttrSource_names_an_attribute_of_its_base() -> None:  # noqa: N802
    source = _torch.AttrSource(_torch.AttrSource(LocalSource("m"), "holder"), "key")
    node = fx.Graph().placeholder("x")
    node._dynamo_source = source  # type: ignore[attr-defined]
    assert _torch.dynamo_source_name(node) == "L['m'].holder.key"


def test_in_compiled_autograd_only_while_its_graph_is_compiled() -> None:
    seen: list[bool] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        seen.append(_torch.in_compiled_autograd())
        return gm.forward

    x = torch.randn(3, requires_grad=True)
    torch.compile(lambda x: x * 2, backend=backend)(x)
    loss = (x * x).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend)):
        loss.backward()
    assert seen == [False, True]
    assert not _torch.in_compiled_autograd()


def test_inductor_mode_options_are_those_of_the_mode() -> None:
    assert _torch.inductor_mode_options("max-autotune")["max_autotune"] is True
    assert _torch.inductor_mode_options(None) == {}
    assert _torch.inductor_mode_options("default") == {}
    with pytest.raises(RuntimeError, match="no-such-mode"):
        _torch.inductor_mode_options("no-such-mode")


def test_without_caches_switches_inductors_off_and_on_again() -> None:
    before = inductor_config.force_disable_caches
    with _torch.without_caches():
        assert inductor_config.force_disable_caches is True
    assert inductor_config.force_disable_caches == before


class Seen(_torch.CustomGraphPass):
    """Counts its calls, in a way that Inductor may pickle or hash."""

    graphs: list[list[Any]]

    def __init__(self, identity: str) -> None:
        self.graphs = []
        self.identity = identity
        self.asked = 0

    def __call__(self, graph: fx.Graph) -> None:
        self.graphs.append([node.target for node in graph.nodes])

    def uuid(self) -> str:
        self.asked += 1
        return self.identity


def inductor_compiles(seen: Seen) -> None:
    """A product alone: Inductor calls ATen for it and needs no C++ compiler."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return _torch.compile_fx(gm, inputs, config_patches={"joint_custom_pre_pass": seen})

    torch.compiler.reset()
    x, w = torch.randn(16, 32), torch.randn(32, 24, requires_grad=True)
    out = torch.compile(lambda x, w: x @ w, backend=backend)(x, w)
    torch.testing.assert_close(out, x @ w)
    out.sum().backward()


def test_compile_fx_calls_the_joint_pass_on_the_joint_graph_before_it_is_partitioned() -> None:
    seen = Seen("any")
    with _torch.without_caches():
        inductor_compiles(seen)
    assert len(seen.graphs) >= 1
    assert seen.graphs[0].count(aten.mm.default) == 2  # the product and its gradient, in one graph


def test_compile_fx_has_each_part_compiled_by_what_it_is_given_and_compile_fx_inner_can_do_it() -> None:
    parts: list[list[Any]] = []

    def compile_part(gm: fx.GraphModule, inputs: Sequence[Any], **how: Any) -> Any:
        parts.append([node.target for node in gm.graph.nodes if node.op == "call_function"])
        return _torch.compile_fx_inner(gm, inputs, **how)

    torch.compiler.reset()
    x, w = torch.randn(16, 32), torch.randn(32, 24, requires_grad=True)
    with _torch.without_caches():
        out = torch.compile(lambda x, w: x @ w, backend=lambda gm, inputs: _torch.compile_fx(gm, inputs, compile_part))(
            x, w
        )
        torch.testing.assert_close(out, x @ w)
        out.sum().backward()
    assert [part.count(aten.mm.default) for part in parts] == [1, 1]  # forward, backward


def test_CustomGraphPass_uuid_is_part_of_the_cache_key(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    first, same, other = Seen("one"), Seen("one"), Seen("two")
    for seen in (first, same, other):
        inductor_compiles(seen)
    assert [bool(seen.graphs) for seen in (first, same, other)] == [True, False, True]
    assert same.asked > 0


def test_GraphTransformObserver_applies_a_pass_to_the_graph_unless_it_is_disabled_by_name() -> None:  # noqa: N802
    gm = fx.symbolic_trace(lambda x: x + 1)
    given: list[fx.Graph] = []

    def observed() -> None:
        observer = _torch.GraphTransformObserver(gm, "spectral_contract", subsystem="joint_graph_passes")
        observer.apply_graph_pass(given.append)

    observed()
    assert given == [gm.graph]
    with inductor_config.patch(disabled_passes="spectral_contract"):
        observed()
    assert len(given) == 1


def test_ShortenTraceback_from_a_backend_is_replaced_by_what_remove_dynamo_frames_returns() -> None:  # noqa: N802
    class Ours(_torch.ShortenTraceback):
        def remove_dynamo_frames(self) -> Any:
            return KeyError("for the user")

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise Ours("internal", first_useful_frame=None)

    with pytest.raises(KeyError, match="for the user"):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))


def test_FakeTensorMode_computes_shapes_without_values() -> None:  # noqa: N802
    mode = _torch.FakeTensorMode()
    fake = mode.from_tensor(torch.ones(3, 4))
    with mode:
        assert (fake @ fake.t()).shape == (3, 3)
    assert fake.fake_mode is mode  # the emitter reads this


def test_detect_fake_mode_finds_the_mode_of_fake_tensors() -> None:
    mode = _torch.FakeTensorMode()
    assert _torch.detect_fake_mode([torch.ones(1), mode.from_tensor(torch.ones(1))]) is mode
    assert _torch.detect_fake_mode([torch.ones(1)]) is None


def test_statically_known_true_neither_guesses_nor_guards() -> None:
    environment = ShapeEnv()
    mode = _torch.FakeTensorMode(shape_env=environment)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    size = mode.from_tensor(torch.ones(40), symbolic_context=context).shape[0]
    assert isinstance(size, torch.SymInt)
    assert not _torch.statically_known_true(size < 32)
    assert not _torch.statically_known_true(size >= 32)  # true of the example, not of every size
    assert not environment.guards
    assert _torch.statically_known_true(3 < 4)
    assert not _torch.statically_known_true(4 < 3)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
SOURCE = """
extern "C" int limit(float x) {
#ifdef SPECTRAL_CONTRACT
    return SPECTRAL_CONTRACT;
#endif
    return -1;
}
extern "C" int infinite(float x) { return __builtin_isinf(x); }
extern "C" int threads() {
    int n = 0;
    #pragma omp parallel num_threads(2) reduction(+ : n)
    n += 1;
    return n;
}
"""


@needs_compiler
def test_load_shared_library_builds_with_openmp_and_lets_our_flags_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    library = _torch.load_shared_library(SOURCE, ("-DSPECTRAL_CONTRACT=7", "-fno-finite-math-only"))
    library.infinite.argtypes = [ctypes.c_float]
    library.limit.argtypes = [ctypes.c_float]
    assert library.limit(0.0) == 7
    assert library.infinite(float("inf")) == 1  # Inductor's own flags say that there are no infinities
    assert library.threads() == 2


def test_load_shared_library_raises_NoCppCompiler_where_there_is_none(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(_torch.NoCppCompiler):
            _torch.load_shared_library("int unseen() { return 0; }")
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()


def test_inductors_names_of_modes_and_options_are_known() -> None:
    assert {"default", "reduce-overhead", "max-autotune"} <= set(_torch.inductor_modes())
    assert {"max_autotune", "joint_custom_pre_pass"} <= set(_torch.inductor_option_names())
    assert _torch.inductor_config.joint_custom_pre_pass is None


def test_a_compiler_that_fails_raises_what_we_catch() -> None:
    with pytest.raises(_torch.CppCompileError):
        _torch.load_shared_library("this is no C++;")


def test_what_a_cpu_can_multiply_and_what_an_operator_is() -> None:
    assert _torch.cpu_multiplies_bf16() in (True, False)
    assert isinstance(torch.ops.aten.mm.default, _torch.OpOverload)


def test_a_joint_graph_tells_which_outputs_are_differentiated() -> None:
    seen: list[list[str]] = []

    def look(stage: str, graph: fx.Graph, plan: object) -> None:
        if stage not in ("forward", "backward"):
            seen.append([node.name for node in _torch.differentiated_outputs(graph)])

    stop = observe(look)
    linear = nn.Linear(8, 8)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = linear(x)
        return y.detach().mean(), y.sum()

    torch.compile(function, backend="spectral", options={"codegen": "eager"})(torch.ones(4, 8))[1].backward()
    stop()
    assert all(len(outputs) == 1 and outputs[0].startswith("sum") for outputs in seen)
    assert seen


def test_the_frame_being_compiled_shows_its_modules() -> None:
    seen: list[dict[str, nn.Module]] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        seen.append(_torch.root_frame_modules())
        return gm.forward

    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    def function(module: nn.Module, x: Tensor) -> Tensor:
        return module(x) * 2

    mine = Mine()
    torch.compile(mine, backend=backend)(torch.ones(2))
    torch.compile(function, backend=backend)(mine, torch.ones(2))
    torch.compiler.reset()  # else the code of the first call serves
    mine.compile(backend=backend)
    mine(torch.ones(2))
    assert [{name: module is mine for name, module in found.items()} for found in seen] == [
        {"self": True},
        {"module": True},
        {"self": True},
    ]
    assert _torch.root_frame_modules() == {}


def test_a_frame_may_be_compiled_more_often_than_the_limit() -> None:
    compiled = 0

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return gm.forward

    def function(x: Tensor, times: int) -> Tensor:
        return x * times

    with _torch.compiling_as_often_as_asked():
        for times in range(40):
            torch.compile(function, backend=lambda gm, inputs: backend(gm, inputs), dynamic=False)(torch.ones(2), times)
    assert compiled == 40


def test_code_that_is_compiled_again_has_the_number_it_had() -> None:
    frames: list[int] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        frames.append(_torch.compiled_frame())
        return gm.forward

    torch.compiler.reset()
    one = torch.compile(lambda x: x + 1, backend=backend, dynamic=False)
    other = torch.compile(lambda x: x + 2, backend=backend, dynamic=False)
    for function, size in ((one, 2), (other, 2), (one, 3)):
        function(torch.ones(size))
    assert frames[0] == frames[2] != frames[1]
    assert min(frames) >= 0
    assert _torch.compiled_frame() == -1  # nothing is compiled now


def test_a_summary_writer_writes_scalars_or_says_that_there_is_no_tensorboard(tmp_path: Path) -> None:
    try:
        writer = _torch.summary_writer(str(tmp_path))
    except ImportError:
        return
    writer.add_scalar("loss", 1.0, 0)
    assert list(tmp_path.iterdir())


def test_a_text_goes_into_the_structured_trace(tmp_path: Path) -> None:
    program = "from spectral_compile import _torch; _torch.trace_artifact('spectral_text', 'what it says')"
    environment = {**os.environ, "TORCH_TRACE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parents[1])
    (log,) = tmp_path.iterdir()
    assert '"name": "spectral_text"' in log.read_text()
    assert "what it says" in log.read_text()


def test_what_replaces_a_node_is_noted_only_while_that_is_asked_for() -> None:
    gm = fx.symbolic_trace(lambda x: torch.relu(x) + 1)
    (relu,) = gm.graph.find_nodes(op="call_function", target=torch.relu)
    with _torch.replacements(gm.graph) as replaced, gm.graph.inserting_before(relu):
        new = gm.graph.call_function(torch.sigmoid, relu.args)
        relu.replace_all_uses_with(new)
        gm.graph.erase_node(relu)
    assert replaced == {relu.name: new.name}
    new.replace_all_uses_with(new.args[0])
    assert len(replaced) == 1


def test_a_guard_on_identity_tells_objects_apart() -> None:
    compiled = 0

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        _torch.guard_on_identity("module")
        return gm.forward

    def function(module: nn.Module, x: Tensor) -> Tensor:
        return module(x) * 2

    call = torch.compile(function, backend=backend)
    first, second = nn.ReLU(), nn.ReLU()
    for module in (first, second, first, second):
        call(module, torch.ones(2))
    assert compiled == 2


def test_global_offset_and_is_strided_shard_say_where_a_part_lies(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.ones(4, 6), init_device_mesh("cpu", (1,)), [Shard(1)])
        assert tuple(_torch.global_offset(tensor)) == (0, 0)
    finally:
        distributed.destroy_process_group()
    assert _torch.is_strided_shard(_StridedShard(0, split_factor=2))
    assert not any(_torch.is_strided_shard(placement) for placement in (Shard(0), Replicate()))
