"""Building the kernels, and doing without them."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor_config

from spectral_compile._torch import NoCppCompiler
from spectral_compile.lowering.cpu import NoCompilerError, build, prepare
from spectral_compile.ops.quantize import quantize as reference

pytestmark = pytest.mark.usefixtures("prepared")
ARGUMENTS = (torch.randn(20, 40), None, None, torch.tensor([1]), "nvfp4", "amax", 1, 1, False, 0)


@pytest.fixture(scope="module")
def prepared() -> None:
    prepare()


def refuse(*arguments: object) -> ctypes.CDLL:
    raise NoCppCompiler


def test_without_a_compiler_prepare_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_library", None)
    monkeypatch.setattr(build, "load_shared_library", refuse)
    with pytest.raises(NoCompilerError, match=r"^no C\+\+ compiler found: install g\+\+ .*codegen.*$"):
        prepare()


def test_an_operator_never_builds_and_runs_as_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_library", None)
    monkeypatch.setattr(build, "load_shared_library", lambda *_: pytest.fail("an operator started a build"))
    got = torch.ops.spectral.quantize(*ARGUMENTS)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, reference(*ARGUMENTS), strict=True))
    x = torch.randn(20, 40)
    assert torch.equal(torch.ops.spectral.token_mean(x, 2), x.sum(0) / 20)
    assert torch.ops.spectral.token_mean_nonzero(x, 2)[1].sum() == 20
    values = torch.ops.spectral.dequantize(*got, "nvfp4", 20, 40)
    product = torch.ops.spectral.scaled_mm(
        *(*got, *got, None, None, 20, 20, 40, True, True, "nvfp4", "nvfp4", "fp32", torch.float32)
    )
    torch.testing.assert_close(product, values @ values.t())


def test_prepare_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_shared_library", refuse)
    prepare()
    assert build.library() is not None


def test_inductor_reports_a_missing_compiler_as_we_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_library", None)
    with inductor_config.patch({"cpp.cxx": ("/nonexistent/c++",)}), pytest.raises(NoCompilerError):
        prepare()


def test_the_source_is_whole_and_knows_the_cpu() -> None:
    source = build._source()
    assert '#include "' not in source
    assert source.count("namespace spectral {") == len(list(Path(build.__file__).parent.glob("*.h"))) + 1
    assert re.match(r"// for \w+", source)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_one_openmp_runtime_serves_torch_and_the_kernels() -> None:
    torch.ops.spectral.quantize(*ARGUMENTS)
    mapped = re.findall(r"\S*/lib(?:g|i)?omp\S*", Path("/proc/self/maps").read_text())
    assert len(set(mapped)) == 1, set(mapped)
