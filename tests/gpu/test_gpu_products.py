"""Products on a GPU, against the reference: bigger shapes than an interpreter could do, and every carrier there is."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from spectral_compile.formats import FORMATS
from spectral_compile.lowering import gpu
from spectral_compile.lowering.carrier import CARRIERS, capability_of, why_not

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

LAYOUTS = list(itertools.product((True, False), repeat=2))
SHAPES = [(1, 1, 1), (257, 513, 1000), (1024, 768, 2048), (16, 4096, 4096)]
OPERANDS = list(itertools.product(FORMATS, repeat=2))


@pytest.fixture(autouse=True)
def _kernels() -> None:
    gpu.prepare(torch.device("cuda", 0))


def on_gpu(arguments: tuple) -> tuple:
    return tuple(x.cuda() if isinstance(x, Tensor) else x for x in arguments)


def skip_unless_possible(carrier: str, formats: tuple[str, str]) -> None:
    reason = why_not(carrier, formats, "cuda", capability_of(torch.device("cuda", 0)))
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("carrier", [c for c in CARRIERS if c != "fp32"])
@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("formats", OPERANDS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_the_references(shape: tuple, formats: tuple, k_last: tuple, carrier: str) -> None:
    from tests.lowering.triton.product_cases import assert_right, product

    skip_unless_possible(carrier, formats)
    # Hopper's FP8 units cut each of 32 products off 13 bits below the largest.
    sums = 2.0**-8 if carrier == "fp8" else 2.0**-23 * (shape[2] + 8)
    for square in ((False, False), (False, True)):
        term = (torch.randn(shape[0]), torch.randn(shape[1]))
        assert_right(on_gpu(product(shape, formats, k_last, square, term, carrier=carrier)), sums)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_code_with_every_scale_is_exact(dtype: torch.dtype, format: str) -> None:
    from spectral_compile.lowering.triton.multiply import carried
    from spectral_compile.lowering.triton.operands import operand
    from spectral_compile.ops.dequantize import carried as reference

    every_byte = torch.arange(256, dtype=torch.uint8, device="cuda")
    blocks = 512 // FORMATS[format].block
    codes = every_byte.repeat(256, 1)
    scales = every_byte.repeat_interleave(blocks).view(256, blocks).view(FORMATS[format].scale_dtype)
    got = carried(operand(codes, scales, scales, format, True), 256, 512, dtype)
    torch.testing.assert_close(got.float(), reference(codes, scales, format, 512), rtol=0, atol=0, equal_nan=True)


def test_the_same_product_twice_is_the_same_to_the_bit() -> None:
    from tests.lowering.triton.product_cases import computed, product

    arguments = on_gpu(product((512, 512, 2048)))
    assert torch.equal(computed(arguments), computed(arguments))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("recipe", ["averis", "mxfp4"])
def test_a_model_trains(recipe: str, mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.GELU(), nn.Linear(512, 256, bias=False), nn.GELU()).cuda()
    model.compile(backend="spectral", mode=mode, options={"recipe": recipe})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(512, 256, device="cuda")
    losses = []
    for _ in range(20):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", torch.bfloat16):
            loss = (model(x).float() - x.clamp(0, 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
