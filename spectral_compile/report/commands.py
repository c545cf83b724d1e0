"""The subcommands of `python -m spectral_compile`."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from spectral_compile.errors import SpectralValueError
from spectral_compile.report import doctor, page
from spectral_compile.report.explain import WIDTH, explain
from spectral_compile.report.folder import graph_folders

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run; ends with status 1 where something is missing, and 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m spectral_compile", description="Four-bit training, from outside.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("doctor", help="what this machine has for four-bit training, and what is missing")
    asked = commands.add_parser("explain", help="what would become of each product of a model")
    asked.add_argument(
        "model", metavar="MODULE:FUNCTION", help="a function without arguments that returns a model and its inputs"
    )
    asked.add_argument("--options", type=_options, default={}, metavar="JSON", help='such as {"recipe": "mxfp4"}')
    asked.add_argument("--autocast", choices=sorted(_AUTOCAST), help="the type under which the model trains, if any")
    asked.add_argument("--json", action="store_true", help="data in place of tables")
    shown = commands.add_parser("report", help="one HTML file that shows what became of a dumped graph")
    shown.add_argument("folder", type=Path, help="what a dump wrote: the folder of a graph, or of several")
    shown.add_argument("-o", "--output", type=Path, metavar="FILE", help="in place of report.html in the folder")
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        _doctor()
    elif given.command == "report":
        _report(parser, given)
    else:
        _explain(parser, given)


def _doctor() -> None:
    findings = doctor.examine()
    _print(doctor.table(findings))
    if any(finding.verdict == "missing" for finding in findings):
        sys.exit(1)


def _report(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    try:
        folders = graph_folders(given.folder)
        if given.output is not None and len(folders) > 1:
            raise SpectralValueError(f"{given.folder} holds {len(folders)} graphs: -o is for one")
        for folder in folders:
            print(page.write(folder, given.output))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _explain(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    try:
        model, inputs = _made(given.model)
        with _autocast(inputs, given.autocast):
            explanation = explain(model, *inputs, options=given.options)
    except ValueError as error:
        parser.error(str(error))
    if given.json:
        print(json.dumps(explanation.as_dict(), indent=2))
    else:
        _print(explanation)


def _autocast(inputs: Sequence[Any], asked: str | None) -> torch.autocast:
    device = next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
    return torch.autocast(device, _AUTOCAST.get(asked or ""), enabled=asked is not None)


def _print(what: Any) -> None:
    """As wide as the terminal, and where there is none, wide enough."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(what)


def _made(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The model and the inputs that a user's function, named MODULE:FUNCTION, returns."""
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"{name!r} names no function: write MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be had: {error}") from None
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(f"{name} returns {type(made).__name__}, not a pair: a model, and its inputs")
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return options
