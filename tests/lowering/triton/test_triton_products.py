"""Triton's products: their numbers, under the interpreter; and what they compile to, for GPUs that are not here."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import triton.language as tl

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton.configs import CONFIGS, GROUPED, Config
from spectral_compile.lowering.triton.fp8 import convert_kernel, exponents_kernel, fp8_kernel
from spectral_compile.lowering.triton.grouped import grouped_kernel, ragged_k_kernel
from spectral_compile.lowering.triton.matmul import bf16_kernel, carry_kernel
from spectral_compile.lowering.triton.native import native_kernel, transpose_kernel
from tests.lowering.triton.targets import Compiled, compile_for

# The instruction that a carrier is there for. A compiler that takes another says nothing.
BF16 = {
    80: r"mma\.sync\S*\.f32\.bf16\.bf16\.f32",
    89: r"mma\.sync\S*\.f32\.bf16\.bf16\.f32",
    90: r"wgmma\.mma_async\S*\.f32\.bf16\.bf16",
    100: r"tcgen05\.mma\S*kind::f16",
    120: r"mma\.sync\S*\.f32\.bf16\.bf16\.f32",
}
FP8 = {
    89: r"mma\.sync\S*\.f32\.e5m2\.e5m2\.f32",
    90: r"wgmma\.mma_async\S*\.f32\.e5m2\.e5m2",
    100: r"tcgen05\.mma\S*kind::f8f6f4",
    120: r"mma\.sync\S*\.e5m2\.e5m2\.f32",
}
NATIVE = {
    (100, "nvfp4"): r"tcgen05\.mma\S*kind::mxf4nvf4\.block_scale\.block16",
    (100, "mxfp4"): r"tcgen05\.mma\S*kind::mxf4\.block_scale",
    (120, "nvfp4"): r"mma\.sync\S*kind::mxf4nvf4\.block_scale\.scale_vec::4X\S*ue4m3",
    (120, "mxfp4"): r"mma\.sync\S*kind::mxf4\S*\.block_scale\.scale_vec::2X\S*ue8m0",
}
UNKNOWN = ("m", "n", "k", "experts")
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a block may have

TERM = {
    **dict.fromkeys(("a_scale", "b_scale", "left", "right"), "*fp32"),
    "left_row": "i32",
    "right_row": "i32",
    "RANK": 1,
    "HAS_LEFT": True,
}
EXTENTS = {"m": "i32", "n": "i32", "k": "i32", "out": "*bf16"}
STORED = {
    **dict.fromkeys(("a_codes", "a_scales", "b_codes", "b_scales"), "*u8"),
    **{f"{name}_row": "i32" for name in ("a_codes", "a_scales", "b_codes", "b_scales")},
}


def test_numbers(run_interpreted: Callable[..., None]) -> None:
    run_interpreted("interpreted_products.py", "interpreted_fp8.py", "interpreted_grouped.py")


def configurations(carrier: str) -> list[Any]:
    """All that a measurement may pick, the defaults in every run of the tests."""
    tables = [configs for (of, _), configs in CONFIGS.items() if of == carrier]
    return [
        pytest.param(config, id=str(config.tile()), marks=[] if config is configs[0] else pytest.mark.slow)
        for configs in tables
        for config in configs
        if config.how == "fused"
    ]


def compiled(architecture: int, kernel: Any, arguments: Mapping[str, Any], config: Config) -> Compiled:
    """With pointers and strides that are multiples of 16, as those of a model's layers; m, n and k say nothing."""
    given = {name: kind for name, kind in {**arguments, **config.tile()}.items() if name in kernel.arg_names}
    divisible = tuple(name for name, kind in given.items() if isinstance(kind, str) and name not in UNKNOWN)
    result = compile_for(architecture, kernel, given, divisible, **config.launch())
    used = f"{result.registers} registers, {result.spilled} B spilled, {result.shared} B shared"
    print(f"sm_{architecture} {config}: {used}")
    assert result.shared <= 1024 * SHARED[architecture]
    return result


@pytest.mark.parametrize("config", configurations("bf16"))
@pytest.mark.parametrize("architecture", BF16)
def test_bf16_multiplies_on_tensor_cores(architecture: int, config: Config) -> None:
    whole = {"WHOLE_M": True, "WHOLE_N": True, "WHOLE_K": True, "OPERANDS": tl.bfloat16}
    formats = {"A_BLOCK": 16, "B_BLOCK": 16, "A_TILE_ROWS": 1, "B_TILE_ROWS": 16}
    layout = {"A_K_LAST": True, "B_K_LAST": False}
    result = compiled(architecture, bf16_kernel, {**STORED, **EXTENTS, **TERM, **whole, **formats, **layout}, config)
    fallback = r"mma\.sync\S*\.f32\.bf16\.bf16\.f32" if config.block_m < 64 else BF16[architecture]
    assert re.search(fallback, result.ptx)
    assert "cp.async" in result.ptx  # operands are fetched ahead
    assert result.spilled == 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("config", configurations("native"))
@pytest.mark.parametrize("architecture", [100, 120])
def test_native_multiplies_on_fp4_units(architecture: int, config: Config, format: str) -> None:
    block = FORMATS[format].block
    formats = {"BLOCK": block, "A_TILE_ROWS": 1, "B_TILE_ROWS": block, "WHOLE_K": True}
    result = compiled(architecture, native_kernel, {**STORED, **EXTENTS, **TERM, **formats}, config)
    assert re.search(NATIVE[architecture, format], result.ptx)
    assert "cp.async" in result.ptx
    assert result.spilled == 0


@pytest.mark.parametrize("config", configurations("fp8"))
@pytest.mark.parametrize("architecture", FP8)
def test_fp8_multiplies_on_fp8_units(architecture: int, config: Config) -> None:
    operands = {"a": "*fp8e5", "b": "*fp8e5", "a_tops": "*i32", "b_tops": "*i32"}
    result = compiled(architecture, fp8_kernel, {**operands, **EXTENTS, **TERM}, config)
    assert re.search(FP8[architecture], result.ptx)
    if architecture == 90:  # sums go to fp32 registers once a tile: an addition for each of a thread's
        sums = config.block_m * config.block_n // (32 * config.num_warps)
        assert len(re.findall(r"add\.(?:rn\.)?f32", result.ptx)) >= sums
    assert "cp.async" in result.ptx
    assert result.spilled == 0


RAGGED = Config(32, 32, 64, num_warps=4, num_stages=2)


@pytest.mark.parametrize("architecture", [80, 120])
@pytest.mark.parametrize("format", FORMATS)
def test_ragged_extents_and_other_layouts_compile(architecture: int, format: str) -> None:
    block = FORMATS[format].block
    ragged = {"WHOLE_M": False, "WHOLE_N": False, "WHOLE_K": False, "OPERANDS": tl.bfloat16}
    formats = {"A_BLOCK": block, "B_BLOCK": 16, "A_TILE_ROWS": block, "B_TILE_ROWS": 1}
    layout = {"A_K_LAST": False, "B_K_LAST": True}
    term = {**TERM, "RANK": 3}
    arguments = {**STORED, **EXTENTS, **term, **ragged, **formats, **layout, **RAGGED.tile()}
    result = compile_for(architecture, bf16_kernel, arguments, **RAGGED.launch())
    assert re.search(BF16[architecture], result.ptx)


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_what_goes_before_a_product_compiles(architecture: int) -> None:
    """Reading and writing kernels: they shall not spill."""
    sizes = {"rows": "i32", "cols": "i32", "codes_row": "i32", "scales_row": "i32"}
    stored = {"codes": "*u8", "scales": "*u8", "values": "*bf16", **sizes}
    blocks = {"BLOCK": 16, "TILE_ROWS": 16, "ROWS": 32, "COLS": 128}
    found = [compile_for(architecture, carry_kernel, {**stored, **blocks})]
    turned = {"transposed": "*u8", "known_bytes": "i32", "transposed_row": "i32", "ROWS": 64, "COLS": 64}
    found += [compile_for(architecture, transpose_kernel, {"codes": "*u8", **sizes, **turned})]
    extents = {"extent": "i32", "count": "i32", "stride": "i32", "k_stride": "i32"}
    tops = {"scales": "*u8", "tops": "*i32", **extents, "PER_SCALE": 32, "ROWS": 16, "COLS": 64}
    found += [compile_for(architecture, exponents_kernel, tops)]
    padded = {"tops": "*i32", "lost": "*i64", "values_rows": "i32", "values_row": "i32"}
    for k_last in (True, False):
        chosen = {"TILE_ROWS": 32, "K_LAST": k_last, "ROWS": 32, "COLS": 128}
        found += [compile_for(architecture, convert_kernel, {**stored, **padded, "values": "*i8", **chosen})]
    assert all(result.spilled == 0 for result in found)


@pytest.mark.parametrize("architecture", BF16)
def test_grouped_products_multiply_on_tensor_cores(architecture: int) -> None:
    formats = {"A_BLOCK": 16, "B_BLOCK": 16, "A_TILE_ROWS": 1, "B_TILE_ROWS": 16, "OPERANDS": tl.bfloat16}
    scales = {"offsets": "*i32", **dict.fromkeys(("a_scale", "b_scale", "left", "right"), "*fp32"), "RANK": 1}
    experts = {"experts": "i32", **dict.fromkeys(("b_codes_expert", "b_scales_expert", "right_expert"), "i32")}
    layout = {"B_K_LAST": False, "HAS_LEFT": True, "WHOLE_N": True, "WHOLE_K": True, "BLOCK": 16, "WHOLE": 1}
    arguments = {**STORED, **EXTENTS, **formats, **scales, **experts, **layout}
    for kernel in (grouped_kernel, ragged_k_kernel):
        result = compiled(architecture, kernel, arguments, GROUPED)
        assert re.search(BF16[architecture], result.ptx)
        assert result.spilled == 0
