"""Arms in processes of their own, for what a shared process would spoil: peak memory, and empty caches."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_models import Sizes

# glibc: every tensor in pages of its own, given back when it is freed.
_FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Setting:
    """What all processes of a run have in common. codegen: of the spectral arms."""

    sizes: Sizes
    threads: int
    codegen: str = "inductor"

    def run(self, task: str, environment: Mapping[str, str], **what: str) -> dict[str, Any]:
        """A task of `one_arm`; {"failed": why} where its process died."""
        request = {"task": task, "threads": self.threads, "codegen": self.codegen, **what}
        request["sizes"] = dataclasses.asdict(self.sizes)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.one_arm", json.dumps(request)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"failed": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['-'])[-1]}"}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def memory(setting: Setting, model: str, arm: str) -> dict[str, Any]:
    return setting.run("memory", _FREE_AT_ONCE, model=model, arm=arm)


def compile_times(setting: Setting, model: str, arms: Sequence[str]) -> dict[str, Any]:
    """Each arm's compile time with empty caches ("cold") and with those it has just filled ("warm").

    Caches are not quite empty: what is made once a machine is made before, and its seconds are under "once".
    """
    with tempfile.TemporaryDirectory() as folder:
        caches, prepared = Path(folder, "caches"), Path(folder, "prepared")
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(caches)}
        once = setting.run("prepare", environment)
        if "failed" in once:
            return {"once": once, "arms": {}}
        caches.rename(prepared)
        rows = {}
        for arm in arms:
            shutil.copytree(prepared, caches)  # always under the same name: precompiled headers are found by it
            cold, warm = (setting.run("compile", environment, model=model, arm=arm) for _ in range(2))
            rows[arm] = {"cold": cold, "warm": warm}
            shutil.rmtree(caches)
    return {"once": once, "arms": rows}
