"""The operators under Inductor: the same codes, scales and products. The only Inductor compile of these tests."""

import torch
from torch import Tensor

from spectral_compile.ops.quantize import quantize
from spectral_compile.ops.scaled_mm import scaled_mm
from tests.ops.operands import all_equal


def test_a_compiled_function_gives_the_reference_s_bits() -> None:
    """Operands that Inductor itself computed, in layouts of its choice; every format and a seed among them."""
    ops = torch.ops.spectral
    tail = (40, 50, 80, True, True, "nvfp4", "mxfp4", "fp32", torch.float32)
    of_a = (None, 5, "nvfp4", "headroom", 1, 1, True, 7)
    of_b = (None, None, "mxfp4", "even", 0, 32, False, 0)

    def function(x: Tensor, w: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        a, b = x.relu() - 0.5, (-w).t()
        qa = ops.quantize(a, None, None, seed, *of_a[2:])
        qb = ops.quantize(b, None, None, None, *of_b[2:])
        q46 = ops.quantize(b, None, None, None, "nvfp4", "four_six", 1, 16, False, 0)
        return (*qa, *qb, *q46, ops.scaled_mm(*qa, *qb, None, None, *tail))

    x, w, seed = torch.randn(40, 70), torch.randn(50, 70), torch.tensor(3)
    got = torch.compile(function, fullgraph=True)(x, w, seed)

    a, b = x.relu() - 0.5, -w.t()
    qa = quantize(a, None, None, seed, *of_a[2:])  # type: ignore[arg-type]
    qb = quantize(b, None, None, None, *of_b[2:])  # type: ignore[arg-type]
    q46 = quantize(b, None, None, None, "nvfp4", "four_six", 1, 16, False, 0)
    assert all_equal(got[:9], (*qa, *qb, *q46))
    torch.testing.assert_close(got[9], scaled_mm(*qa, *qb, None, None, *tail), rtol=1e-5, atol=1e-4)
