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
    library.declare("only_for_test_library(Tensor x) -> Tensor", reference=torch.clone, fake=torch.empty_like)
    operator = torch.ops.spectral.only_for_test_library
    assert operator(torch.ones(2)).tolist() == [1, 1]
    library.implement("only_for_test_library", lambda x: x + 1, "CPU")
    assert operator(torch.ones(2)).tolist() == [2, 2]
    assert operator(torch.ones(2, device="meta")).shape == (2,)
