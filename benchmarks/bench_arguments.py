"""The command line of `benchmarks.bench`."""

import argparse
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.bench_arms import BASELINE
from benchmarks.bench_models import MODELS
from benchmarks.stages import COPY_MIB
from spectral_compile.config import DEFAULT_RECIPE

PARTS = ("timing", "memory", "compile", "stages")


class Parser(argparse.ArgumentParser):
    """Whatever is wrong with the arguments is one line on stderr and exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        add = self.add_argument
        add("--models", default="block,gpt", help=f"of {', '.join(MODELS)}")
        add("--arms", default="default", help="names, all, or default: all but some recipes")
        add("--baseline", default=BASELINE, help="the arm that ratios are against")
        add("--parts", default=",".join(PARTS))
        add("--compile-arms", default=f"{BASELINE},spectral {DEFAULT_RECIPE}", help="whose compile time is taken")
        add("--stage-recipe", default="averis", help="whose kernels are taken one by one")
        add("--rounds", type=int, default=20, help="steps of every arm, and calls of every kernel")
        add("--threads", type=int, default=torch.get_num_threads())
        add("--block", default="", metavar="SIZES", help="dim=1024,ff=2816,heads=16,batch=4,length=512, or some")
        add("--gpt", default="", metavar="SIZES", help="dim=512,layers=12,heads=8,batch=4,length=256, or some")
        add("--copy-mib", type=int, default=COPY_MIB, help="of the copy in memory that stages are held against")
        add("--codegen", default="inductor", choices=("inductor", "eager"), help="of the spectral arms")
        add("--out", type=Path, default=Path("runs/bench"), help="folder for result.json")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def some(text: str, names: tuple[str, ...], what: str) -> list[str]:
    """The names in a comma list; ValueError for one that is none."""
    found = text.split(",")
    for name in found:
        if name not in names:
            raise ValueError(f"no {what} {name!r}; there is {', '.join(names)}")
    return found
