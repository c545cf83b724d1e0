"""Real text that every machine has: the sources and documentation of Python's own standard library, as bytes.

Another Python version has other files: `Corpus.digest` tells whether two results saw the same text.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SUFFIXES = (".py", ".txt", ".rst")
# Not the standard library, or generated tables, or test data in odd encodings.
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "encodings", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Corpus:
    """train, validation: uint8 [bytes], a zero byte after each file. digest: SHA-256 of both, in hex."""

    train: Tensor
    validation: Tensor
    digest: str


def load_corpus(root: Path | None = None) -> Corpus:
    """All text under `root` (the running Python's standard library), split by file, in order of the paths.

    Raises `FileNotFoundError` when there is no text for training or none for validation.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    train, validation = bytearray(), bytearray()
    for name in text_files(root):
        part = validation if is_validation(name) else train
        part += (root / name).read_bytes() + b"\0"
    if not train or not validation:
        raise FileNotFoundError(f"not enough {', '.join(SUFFIXES)} files under {root} to train on and to validate with")
    digest = hashlib.sha256(train + validation).hexdigest()
    return Corpus(torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(validation, dtype=torch.uint8), digest)


def text_files(root: Path) -> list[str]:
    """Paths of the text files under `root`, relative to it, with forward slashes, sorted."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED]
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if name.endswith(SUFFIXES)]
    return sorted(found)


def is_validation(name: str) -> bool:
    """Whether the file is held out: one in twenty, by a hash of its path, on every machine the same."""
    return hashlib.sha256(name.encode()).digest()[0] % 20 == 0


def batches(data: Tensor, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (tokens, targets), each int64 [batch, context]: windows of `data`, targets one on.

    The same arguments give the same batches. Raises `ValueError` when `data` is shorter than a window.
    """
    starts = len(data) - context
    if starts < 1:
        raise ValueError(f"a context of {context} needs more than {len(data)} bytes of text")
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(context + 1)
    while True:
        first = torch.randint(starts, (batch, 1), generator=generator)
        text = data[first + window].long()
        yield text[:, :-1].contiguous(), text[:, 1:].contiguous()
