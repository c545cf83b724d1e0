"""What every spectral:: operator promises to the compiler."""

import pytest
import torch

import spectral_compile.ops  # noqa: F401  # registers them
from spectral_compile.ops import library

NAMES = [
    "center",
    "dequantize",
    "hadamard",
    "quantize",
    "scaled_mm",
    "split_mm",
    "token_mean",
    "token_mean_nonzero",
]


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_functional_and_made_for_the_compiler(name: str) -> None:
    operator = getattr(torch.ops.spectral, name).default
    schema = operator._schema
    assert not schema.is_mutable
    assert all(value.alias_info is None for value in (*schema.arguments, *schema.returns))
    assert torch.Tag.pt2_compliant_tag in operator.tags
    assert torch.Tag.nondeterministic_seeded not in operator.tags


def test_a_device_may_get_its_own_kernel_and_the_others_keep_the_reference() -> None:
    def one_more(x: torch.Tensor, *, out: tuple[torch.Tensor]) -> None:
        torch.add(x, 1, out=out[0])

    library.declare("only_for_test_library(Tensor x) -> Tensor", reference=torch.clone, fake=torch.empty_like)
    operator, planned = torch.ops.spectral.only_for_test_library, torch.ops.spectral.only_for_test_library_planned
    into = torch.zeros(2)
    assert operator(torch.ones(2)).tolist() == planned(torch.ones(2)).tolist() == [1, 1]
    assert planned.out(torch.ones(2), out=into) is into
    assert into.tolist() == [1, 1]
    library.implement("only_for_test_library", one_more, "CPU")
    assert operator(torch.ones(2)).tolist() == planned(torch.ones(2)).tolist() == [2, 2]
    planned.out(torch.ones(2), out=into)
    assert into.tolist() == [2, 2]
    assert operator(torch.ones(2, device="meta")).shape == (2,)


def test_several_results_are_written_into_given_tensors() -> None:
    library.declare(
        "also_for_test_library(Tensor x) -> (Tensor once, Tensor twice)",
        reference=lambda x: (x + 0, x * 2),
        fake=lambda x: (torch.empty_like(x), torch.empty_like(x)),
    )
    into = torch.zeros(2), torch.zeros(2)
    torch.ops.spectral.also_for_test_library_planned.out(torch.ones(2), out0=into[0], out1=into[1])
    assert [t.tolist() for t in into] == [[1, 1], [2, 2]]
