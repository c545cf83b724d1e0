"""The GPU's benchmark, as far as it goes without one: it says so; and the model of Hopper's sums."""

import pytest
import torch

from benchmarks import gpu
from benchmarks.fp8_error import PROMOTION, hopper
from benchmarks.gpu_tables import tables


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "no CUDA device here" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "nothing"])


def test_the_record_becomes_tables() -> None:
    spread = {"median": 1e-3, "low": 1e-3, "high": 1e-3}
    row = {"seconds": spread, "ratio": spread, "bytes_per_second": 1e12, "share_of_copy": 0.5, "peak_bytes": 2**20}
    part = {"arms": {"an arm": row}, "failed": {"another": "no memory"}, "tokens": 8}
    record = {
        "device": "GPU",
        "products": [{"shape": (1, 2, 3), "flop": 12, **part}],
        "quantise": part,
        "fp8": {"rows": [{"k": 128, "fp8": 1e-4, "bf16": 1e-7}], "lost_blocks": 0},
        "steps": {"block": part, "gpt": part},
    }
    assert [table.row_count for table in tables(record)] == [1] * 5


def test_hoppers_sums_are_exact_while_they_fit_and_then_are_not() -> None:
    small = torch.randint(-4, 5, (8, 256)).double()
    assert torch.equal(hopper(small, 256), small.sum(-1))
    uneven = torch.cat((torch.full((8, 32), 2.0**20), torch.ones(8, 224)), dim=-1).double()
    assert torch.equal(hopper(uneven, 256), uneven[:, :32].sum(-1))  # ones are below 13 bits of the sum
    assert torch.equal(hopper(uneven, PROMOTION), uneven[:, :32].sum(-1) + 128)
