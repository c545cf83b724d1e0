"""spectral::measure and compare: they hand on what they were given. What they find: tests/measuring."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile.measuring import sessions
from spectral_compile.measuring.sessions import Session, where

IDLE = torch.tensor([-1, 0, 0])
X, SCALE, PRODUCT = torch.randn(32, 48), torch.tensor(0.5), torch.randn(32, 16)
HOW = (None, "nvfp4", "amax", 1, 1, False, 0, 0)
MEASURED = (SCALE, X, X.mean(0), None, *HOW)
COMPARED = (PRODUCT, X, None, None, False, torch.randn(16, 48), None, None, False, None, torch.randn(16))


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (torch.ops.spectral.measure.default, (*MEASURED, IDLE, [where("up", "fprop", "activation")])),
        (torch.ops.spectral.compare.default, (*COMPARED, IDLE, where("up", "fprop", "product"))),
    ],
    ids=["measure", "compare"],
)
def test_what_comes_back_is_a_copy_of_what_was_given(op: Any, arguments: tuple[Any, ...]) -> None:
    opcheck(op, arguments)
    result: Tensor = op(*arguments)
    assert torch.equal(result, arguments[0])
    assert result.data_ptr() != arguments[0].data_ptr()


def test_only_calls_that_are_measured_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_latest", {})
    names = [where("up", "fprop", "activation")]
    torch.ops.spectral.measure(*MEASURED, IDLE, names)
    assert len(sessions.numerics()) == 0
    torch.ops.spectral.measure(*MEASURED, Session(1).step(True), names)
    (row,) = sessions.numerics().rows
    assert row["amax"] == (X - X.mean(0)).abs().max()
