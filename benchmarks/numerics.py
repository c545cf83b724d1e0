"""How exact is FP4 training's arithmetic, and what does each choice cost? The tables of docs/numerics.md.

    python -m benchmarks.numerics                            on the terminal
    python -m benchmarks.numerics --markdown                 as they stand in docs/numerics.md
    python -m benchmarks.numerics --check docs/numerics.md   exit status 1 where the page says anything else
    python -m benchmarks.numerics --write docs/numerics.md   put them there

Generators are fixed, sums are in fp64: a fresh run prints the same digits.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import numerics_order, numerics_products, numerics_published, numerics_rounding, numerics_stochastic
from benchmarks.numerics_tables import Table, differences, updated

WIDTH = 150


def tables(gradient_ratio: float = numerics_products.GRADIENT_RATIO) -> Iterator[Table]:
    """In the order of the page. gradient_ratio: the gradient's mean/deviation as a share of the activation's."""
    yield from numerics_rounding.tables()
    yield numerics_products.products_table(gradient_ratio)
    yield numerics_published.published_table()
    yield numerics_published.few_rows_table()
    yield numerics_stochastic.draws_table()
    yield numerics_order.order_table()


@contextmanager
def one_thread() -> Iterator[None]:
    """The operators are many and small: where others use the cores, threads that wait for each other cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.numerics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gradient-ratio",
        type=float,
        default=numerics_products.GRADIENT_RATIO,
        help="mean/deviation of the gradients, as a share of that of the activations (default: %(default)s)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--markdown", action="store_true", help="print markdown")
    what.add_argument("--check", type=Path, metavar="PAGE", help="compare the page's tables with a fresh run")
    what.add_argument("--write", type=Path, metavar="PAGE", help="replace the page's tables")
    options = parser.parse_args(arguments)

    with one_thread():
        if not (options.markdown or options.check or options.write):
            for table in tables(options.gradient_ratio):
                Console(width=WIDTH).print(table.rich(), "")
            return 0
        fresh = list(tables(options.gradient_ratio))
    if options.markdown:
        print("\n".join(table.markdown() for table in fresh))
    if options.write:
        options.write.write_text(updated(options.write.read_text(), fresh))
    if options.check and (lines := differences(options.check.read_text(), fresh)):
        print(f"{options.check} is not what a fresh run prints:", *lines, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
