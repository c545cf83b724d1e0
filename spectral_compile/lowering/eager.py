"""Running the rewritten graph operator by operator: no Inductor, no C++ compiler; for debuggers and most tests."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from spectral_compile import registry
from spectral_compile._torch import aot_autograd, min_cut_rematerialization_partition, select_decomp_table
from spectral_compile.pipeline import PassManager, notify
from spectral_compile.report.sizes import mark_user_outputs

NO_POST_GRAD = "spectral: passes of stage 'post_grad' do not run with codegen 'eager'"


def compile_eager(
    gm: fx.GraphModule, example_inputs: Sequence[Any], joint_pass: PassManager | None
) -> Callable[..., Any]:
    """AOTAutograd, `joint_pass` on the joint graph, the same partitioner as Inductor's, then an interpreter."""
    if registry.has_registered("post_grad"):
        warnings.warn(NO_POST_GRAD, stacklevel=2)

    def rewrite(graph_module: fx.GraphModule) -> None:
        if joint_pass is not None:
            joint_pass(graph_module.graph)
            graph_module.recompile()

    def partition(joint: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        rewrite(joint)
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **kwargs)
        if joint_pass is not None and joint_pass.plan is not None:
            mark_user_outputs(forward.graph, kwargs["num_fwd_outputs"])
            notify("forward", forward.graph, joint_pass.plan)
            notify("backward", backward.graph, joint_pass.plan)
            if joint_pass.dump is not None:
                joint_pass.dump.part(forward.graph)
                joint_pass.dump.part(backward.graph)
        return forward, backward

    def inference(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        rewrite(graph_module)
        if joint_pass is not None and joint_pass.plan is not None:
            notify("inference", graph_module.graph, joint_pass.plan)
        return _run(graph_module, inputs)

    backend = aot_autograd(
        fw_compiler=_run,
        bw_compiler=_run,
        inference_compiler=inference,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    return backend(gm, example_inputs)


def _run(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    def run(arguments: list[Any]) -> Any:
        return fx.Interpreter(graph_module).boxed_run(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd: arguments come as one list, ours to empty
    return run
