"""Products of stacks of weights: operators before and after, and each expert as if it were a linear of its own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import moe  # noqa: F401  # registers what it compiles fp32 experts to

from spectral_compile import MeanCenter, Operand, QuantizeFP4, Rule
from tests.capture import assert_close, capture, count, gradients
from tests.ops.groups import counts_and_rest, slices

NEAREST = QuantizeFP4(gradients=Operand(rounding="nearest"))


class Experts(nn.Module):
    """One stack, then a linear that is a head; `grouped` says how the stack is multiplied."""

    def __init__(self, experts: int = 3, dtype: torch.dtype = torch.bfloat16, transposed: bool = True) -> None:
        super().__init__()
        shape = (experts, 48, 32) if transposed else (experts, 32, 48)
        self.stack = nn.Parameter((torch.randn(shape) / 5).to(dtype))
        self.head = nn.Linear(48, 8, dtype=dtype)
        self.transposed = transposed

    def weight(self) -> Tensor:
        return self.stack.mT if self.transposed else self.stack

    def grouped(self, x: Tensor, offsets: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return torch.ops.transformers.grouped_mm_fallback(x, self.weight(), offsets)
        return torch.nn.functional.grouped_mm(x, self.weight(), offs=offsets)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.grouped(x, offsets))


class Batched(Experts):
    """x [experts, tokens, in]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.weight())


class LeftBatched(Experts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.weight().mT @ x.mT).mT)


class Separate(nn.Module):
    """The same with a linear for each expert: tokens [tokens, in] a expert, in a list."""

    def __init__(self, model: Experts) -> None:
        super().__init__()
        self.linears = nn.ParameterList(list(model.weight().detach().mT))
        self.head = model.head

    def forward(self, *tokens: Tensor) -> Tensor:
        parts = [nn.functional.linear(x, w) for x, w in zip(tokens, self.linears, strict=True)]
        return self.head(torch.cat(parts))


def tokens(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(shape) + 0.5).to(dtype).requires_grad_()


def int32(*ends: int) -> Tensor:
    return torch.tensor(ends, dtype=torch.int32)


def test_operators_before_and_after() -> None:
    graphs = capture(Experts(), tokens(120, 32), int32(40, 40, 120)).graphs
    assert count(graphs["joint"], "aten._grouped_mm") == 3
    centred = graphs["mean_center"]
    assert count(centred, "spectral.grouped_split_mm") == 3
    assert count(centred, "spectral.grouped_center") == 3  # X; D for dgrad, which keeps rows of zeros; D for wgrad
    assert count(centred, "spectral.grouped_token_mean") == 1
    final = graphs["quantize_fp4"]
    assert count(final, "spectral.scaled_grouped_mm") == 3
    assert count(final, "spectral.stack_quantize") == 1  # fprop and dgrad share square blocks
    assert count(final, "spectral.grouped_quantize") == 4
    for name in ("aten._grouped_mm", "spectral.grouped_split_mm", "spectral.grouped_center"):
        assert count(final, name) == 0


def test_without_square_blocks_each_product_has_its_own_codes_of_the_stack() -> None:
    passes = [QuantizeFP4(weights=Operand(square=False))]
    final = capture(Experts(), tokens(120, 32), int32(40, 40, 120), recipe="nvfp4-plain", passes=passes).final
    assert sorted(node.args[4] for node in final.nodes if "stack_quantize" in str(node.target)) == [0, 1]


def test_the_plan_names_the_stack_and_says_how_many_experts_there_are() -> None:
    captured = capture(Experts(), tokens(120, 32), int32(40, 40, 120))
    fprop, dgrad, wgrad = (captured.row("stack", role) for role in ("fprop", "dgrad", "wgrad"))
    assert (fprop.m, fprop.n, fprop.k, fprop.experts) == ("120", "48", "32", "3")
    assert (dgrad.m, dgrad.n, dgrad.k) == ("120", "32", "48")
    assert (wgrad.m, wgrad.n, wgrad.k) == ("48", "32", "120")
    assert "120 x 48 x 32, 3 experts" in fprop.cells()


RECIPES = {
    "plain": {"recipe": "nvfp4-plain", "passes": [NEAREST]},
    "mxfp4": {"recipe": "mxfp4", "passes": [QuantizeFP4(format="mxfp4", gradients=Operand(rounding="nearest"))]},
    "hadamard": {"recipe": "nvfp4", "passes": [NEAREST]},
    "averis": {"recipe": "averis", "passes": [NEAREST]},
    "averis, gradients alone": {"recipe": "averis", "passes": [NEAREST, MeanCenter(activations=False)]},
    "averis, hadamard everywhere": {"recipe": "averis", "passes": [NEAREST], "rules": [Rule(hadamard=True)]},
    "square activations": {"recipe": "nvfp4-plain", "passes": [QuantizeFP4(activations=Operand(square=True),
                                                                           gradients=Operand(rounding="nearest"))]},
}  # fmt: skip


def assert_as_separate(
    model: Experts, x: Tensor, groups: list[slice], grouped: Any, rtol: float = 0, **how: Any
) -> None:
    """Output and gradients of a captured run are those of a linear a expert, to the bit; stacks' to `rtol`."""
    parts = [x.detach()[group].clone().requires_grad_() for group in groups]
    twin = Separate(model)
    separate = capture(twin, *parts, **how)
    covered = groups[-1].stop
    assert torch.equal(grouped.output[:covered], separate.output)
    for expert, group in enumerate(groups):
        of_stack = grouped.gradients["stack"][expert]
        of_stack = of_stack if model.transposed else of_stack.t()
        of_linear = separate.gradients.get(f"linears.{expert}", torch.zeros_like(of_stack))
        # Autograd may have multiplied the transposes, whose sums run in another order.
        torch.testing.assert_close(of_stack, of_linear, rtol=rtol, atol=rtol)
        if group.stop > group.start:
            assert torch.equal(grouped.gradients["input0"][group], separate.gradients[f"input{expert}"]), expert


@pytest.mark.parametrize("how", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_each_expert_is_a_linear_of_its_own(dtype: torch.dtype, how: dict[str, Any]) -> None:
    model, x = Experts(4, dtype), tokens(150, 32, dtype=dtype)
    ends = int32(40, 83, 90, 150)  # one expert has too few tokens for its mean to be taken out
    grouped = capture(model, x, ends, **how)
    assert {row.quantized for row in grouped.plan.rows if row.layer == "stack"} == {True}
    assert_as_separate(model, x, slices(ends), grouped, **how)


@pytest.mark.parametrize("kind", [Batched, LeftBatched])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("recipe", ["averis", "plain"])
def test_bmm_with_a_stack_is_the_same_with_groups_of_one_size(recipe: str, transposed: bool, kind: Any) -> None:
    model, x = kind(3, torch.float32, transposed), tokens(3, 40, 32, dtype=torch.float32)
    how = RECIPES[recipe]
    batched = capture(model, x, **how)
    assert [row.experts for row in batched.plan.rows if row.layer == "stack"] == ["3"] * 3
    assert count(batched.final, "aten.bmm") == 0
    batched.output = batched.output.flatten(0, 1)
    batched.gradients["input0"] = batched.gradients["input0"].flatten(0, 1)
    assert_as_separate(model, x.flatten(0, 1), slices((40, 80, 120)), batched, rtol=1e-5, **how)


@settings(max_examples=6)
@given(counts_and_rest())
def test_empty_experts_and_tokens_of_nobody(drawn: tuple[list[int], int]) -> None:
    counts, rest = drawn
    counts = [count + (sum(counts) == 0) for count in counts]
    ends = int32(*counts).cumsum(0, dtype=torch.int32)
    last = int(ends[-1])
    model, x = Experts(len(counts)), torch.randn(last + rest, 32).to(torch.bfloat16)
    x[last:] = torch.nan
    run = capture(model, x.requires_grad_(), ends, loss=lambda y: y[:last].float().square().sum())
    assert not run.output.isnan().any()
    bias = model.head.bias.detach()
    assert torch.equal(run.output[last:], bias.expand(rest, 8))
    assert not run.gradients["input0"].isnan().any()
    assert not run.gradients["input0"][last:].any()
    assert not run.gradients["stack"].isnan().any()
    for expert, held in enumerate(counts):
        assert bool(run.gradients["stack"][expert].any()) == (held > 0)


def test_gradients_are_those_of_high_precision_within_the_error_of_four_bits() -> None:
    model, x, ends = Experts(), tokens(120, 32), int32(40, 50, 120)
    exact = gradients(model, model, x, ends).gradients
    assert_close(capture(model, x, ends, recipe="identity").gradients, exact, 0.01)
    assert_close(capture(model, x, ends).gradients, exact, 0.25)


def test_mean_removal_of_each_expert_helps_where_experts_see_different_means() -> None:
    model = Experts()
    x = torch.randn(192, 32) + 8 * torch.randn(3, 32).repeat_interleave(64, 0)
    x, ends = x.to(torch.bfloat16), int32(64, 128, 192)
    exact = model(x, ends).detach()

    def error(recipe: str) -> float:
        """Of what tells an expert's tokens apart."""
        difference = (capture(model, x, ends, recipe=recipe).output.detach() - exact).float().view(3, 64, 8)
        return float((difference - difference.mean(1, keepdim=True)).norm())

    assert error("averis") < 0.4 * error("nvfp4-plain")


def test_one_graph_serves_any_number_of_tokens() -> None:
    torch._dynamo.reset()
    model = Experts()
    compiled = torch.compile(
        model, backend="spectral", dynamic=True, options={"codegen": "eager", "recipe": "averis", "passes": [NEAREST]}
    )
    for ends in (int32(40, 50, 120), int32(10, 90, 90), int32(0, 0, 64)):
        x = tokens(int(ends[-1]) + 5, 32)
        got = gradients(compiled, model, x, ends)
        expected = capture(model, x, ends, passes=[NEAREST])
        assert_close(got.gradients, expected.gradients, 1e-6)
        assert torch.equal(got.output, expected.output)


def test_bmm_of_any_number_of_tokens() -> None:
    model = Batched(3, torch.float32)
    for dynamic in (False, True):
        x = tokens(3, 40, 32, dtype=torch.float32)
        captured = capture(model, x, dynamic=dynamic, recipe="identity")
        assert_close(captured.gradients, gradients(model, model, x).gradients, 1e-5)


def test_checkpointing_changes_no_bit() -> None:
    class Checkpointed(Experts):
        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            return self.head(checkpoint(self.grouped, x, offsets, use_reentrant=False))

    plain, x, ends = Experts(), tokens(120, 32), int32(40, 50, 120)
    again = Checkpointed()
    again.load_state_dict(plain.state_dict())
    assert_close(capture(again, x, ends).gradients, capture(plain, x, ends).gradients, 0.0)


@pytest.mark.parametrize("gemms", [["fprop"], ["dgrad"], ["wgrad"]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_rules_are_about_single_products(dtype: torch.dtype, gemms: list[str]) -> None:
    rules = [Rule(layers="stack$", gemms=gemms, high_precision=True)]
    captured = capture(Experts(3, dtype), tokens(120, 32, dtype=dtype), int32(40, 50, 120), rules=rules)
    left = [row.role for row in captured.plan.rows if row.layer == "stack" and not row.quantized]
    assert left == gemms
    assert count(captured.final, "spectral.scaled_grouped_mm") == 2


def test_excluded_stacks_stay_as_they_were() -> None:
    model, x, ends = Experts(), tokens(120, 32), int32(40, 50, 120)
    captured = capture(model, x, ends, exclude=["stack"])
    assert count(captured.final, "aten._grouped_mm") == 3
    assert_close(captured.gradients, gradients(model, model, x, ends).gradients, 0.02)


@pytest.mark.parametrize("mode", ["paper", "requant"])
def test_other_modes_of_the_mean_leave_experts_alone_and_say_so(mode: Any) -> None:
    captured = capture(Experts(), tokens(120, 32), int32(40, 50, 120), passes=[MeanCenter(mode=mode)])
    reason = "experts whose mean is taken out in another mode than 'hp' stay as they are"
    assert {row.reason for row in captured.plan.rows if row.layer == "stack"} == {reason}


def test_too_few_tokens_are_not_centred() -> None:
    captured = capture(Experts(), tokens(30, 32), int32(10, 20, 30))
    assert not any(row.centered for row in captured.plan.rows)


def test_weights_gathered_for_each_token_say_what_to_do_instead() -> None:
    class Gathered(Experts):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.head(torch.bmm(self.stack[ids], x.unsqueeze(-1)).squeeze(-1))

    captured = capture(Gathered(), tokens(40, 32), torch.arange(40) % 3)
    reasons = {row.reason for row in captured.plan.rows if row.layer != "head"}
    assert len(reasons) == 1
    assert 'set_experts_implementation("grouped_mm")' in reasons.pop()


def test_numerics_pass_over_experts() -> None:
    class Both(Experts):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(32, 32, dtype=torch.bfloat16)

        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            return super().forward(self.proj(x), offsets)

    model, x, ends = Both(), tokens(120, 32), int32(40, 50, 120)
    measured = capture(model, x, ends, numerics=1)
    assert count(measured.graphs["numerics"], "spectral.measure") > 0
    assert_close(measured.gradients, capture(model, x, ends).gradients, 0.0)
