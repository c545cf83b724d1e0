"""Which tiles a product is computed in: a table, so that a cold start compiles one kernel and tunes none.

`benchmarks/gpu.py --tune` times every candidate on the GPU that it runs on and writes the fastest into measured.json,
which is asked before the defaults here. Those are what the resources of an architecture suggest; none was timed yet.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Capability = tuple[int, int]
Extent = Literal["few", "many"]

FEW = 64  # rows up to which a product waits for its weight to be read
MEASURED = Path(__file__).parent / "measured.json"


@dataclass(frozen=True)
class Config:
    """A tile [block_m, block_n], summed block_k at a time; group_m: see `epilogue.tile_of`.

    how: "fused" reads codes in the product's own kernel. "carry" writes the carrier's values to memory first, where
    cuBLAS multiplies them: more to read and write, but nothing to decode once for each tile.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8
    how: Literal["fused", "carry"] = "fused"

    def tile(self) -> dict[str, int]:
        """As the kernels' constants."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "GROUP_M": self.group_m}

    def whole(self, m: int, n: int, k: int) -> dict[str, bool]:
        """Which extents are multiples of the tile's: then there is less to mask. Constants as well."""
        fits = m % self.block_m, n % self.block_n, k % self.block_k
        return {name: rest == 0 for name, rest in zip(("WHOLE_M", "WHOLE_N", "WHOLE_K"), fits, strict=True)}

    def launch(self) -> dict[str, int]:
        """As Triton's options."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# The first is the default; all are candidates for tuning, and all are compiled by the tests for all architectures that
# have the carrier.
CONFIGS: dict[tuple[str, Extent], tuple[Config, ...]] = {
    ("bf16", "many"): (
        Config(128, 128, 64, num_warps=8, num_stages=3),
        Config(64, 128, 64, num_warps=4, num_stages=4),
        Config(128, 128, 64, num_warps=8, num_stages=3, how="carry"),
    ),
    ("bf16", "few"): (
        Config(32, 64, 128, num_warps=4, num_stages=4),
        Config(64, 64, 64, num_warps=4, num_stages=4),
    ),
    ("fp8", "many"): (
        Config(128, 128, 128, num_warps=8, num_stages=3),
        Config(64, 128, 128, num_warps=4, num_stages=3),
    ),
    ("fp8", "few"): (Config(64, 64, 128, num_warps=4, num_stages=4),),
    ("native", "many"): (
        Config(128, 128, 256, num_warps=8, num_stages=3),
        Config(128, 128, 128, num_warps=8, num_stages=3),
    ),
    ("native", "few"): (Config(128, 64, 128, num_warps=4, num_stages=4),),
}

GROUPED = Config(64, 128, 64, num_warps=8, num_stages=2)  # groups are shorter than a batch, and end in parts of tiles


def choose(carrier: str, capability: Capability, m: int, n: int) -> Config:
    """For a product [m, n] on a GPU of this compute capability."""
    extent = extent_of(m, n)
    return _measured().get((carrier, capability, extent)) or CONFIGS[carrier, extent][0]


def extent_of(m: int, n: int) -> Extent:
    """Whether a product is a few rows, or columns, wide."""
    return "few" if min(m, n) <= FEW else "many"


def record(carrier: str, capability: Capability, extent: Extent, config: Config, device: str) -> None:
    """Write what was the fastest into the table, in the place of what was there."""
    key = {"carrier": carrier, "capability": list(capability), "extent": extent}
    rows = [row for row in _rows() if not key.items() <= row.items()]
    rows.append({**key, "device": device, **asdict(config)})
    rows.sort(key=lambda row: (row["carrier"], row["capability"], row["extent"]))
    MEASURED.write_text(json.dumps(rows, indent=1) + "\n")
    _measured.cache_clear()


@functools.cache
def _measured() -> dict[tuple[str, Capability, Extent], Config]:
    found = {}
    for row in _rows():
        major, minor = row.pop("capability")
        key = row.pop("carrier"), (major, minor), row.pop("extent")
        row.pop("device")
        found[key] = Config(**row)
    return found


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text())
    return rows
