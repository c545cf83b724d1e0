"""Running tests under Triton's interpreter, beside others that compile.

Kernels are interpreted or compiled by what the environment said when Triton was imported, so tests of their numbers
lie in files of their own, `interpreted_*.py`, which pytest does not collect; a process of its own runs them.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*"]


@pytest.fixture
def run_interpreted() -> Callable[..., None]:
    """Runs files beside this one, and fails with what they printed."""

    def run(*files: str) -> None:
        paths = [str(Path(__file__).with_name(file)) for file in files]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)

    return run
