"""Errors reach the user of a compiled function plain and short."""

import pytest
import torch
from torch import Tensor

from spectral_compile.errors import SpectralRuntimeError, SpectralValueError

KINDS = [(SpectralValueError, ValueError), (SpectralRuntimeError, RuntimeError)]


@pytest.mark.parametrize(("ours", "builtin"), KINDS)
def test_outside_a_backend_ours_is_caught_as_the_builtin(ours: type, builtin: type) -> None:
    with pytest.raises(builtin, match="what to do"):
        raise ours("what to do")


@pytest.mark.parametrize(("ours", "builtin"), KINDS)
def test_inside_a_backend_the_user_meets_the_builtin_itself_with_our_message_alone(ours: type, builtin: type) -> None:
    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        raise ours("what to do")

    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + 1, backend=backend)
    with pytest.raises(builtin) as caught:
        compiled(torch.ones(2))
    assert type(caught.value) is builtin
    assert str(caught.value) == "what to do"
    assert caught.value.__suppress_context__  # no chain of Dynamo's own exceptions above it
    torch.compiler.reset()
