"""Running tests under Triton's interpreter, beside others that compile.

Kernels are interpreted or compiled by what the environment said when Triton was imported, so tests of their numbers
lie in files of their own, `interpreted_*.py`, which pytest does not collect; a process of its own runs each.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.fixture
def run_interpreted() -> Callable[[str], None]:
    """Runs a file beside this one, and fails with what it printed."""

    def run(file: str) -> None:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).with_name(file))]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)

    return run
