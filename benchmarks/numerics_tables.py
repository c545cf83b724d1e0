"""Tables that are printed on a terminal, and kept in a markdown page that can be compared with a fresh run.

In the page a table is preceded by a line `<!-- table: name -->`; what follows that line, up to the next line that does
not begin with a bar, is the table's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """name: in the page's marker. columns: headings. rows: cells; the first `labels` of each are words."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1

    def markdown(self) -> str:
        """With its marker; ends in a newline."""
        rule = ["---"] * self.labels + ["---:"] * (len(self.columns) - self.labels)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([marker(self.name), *lines, ""])

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left")
        for index, heading in enumerate(self.columns):
            label = index < self.labels
            table.add_column(heading, justify="left" if label else "right", no_wrap=label)
        for row in self.rows:
            table.add_row(*row)
        return table


def marker(name: str) -> str:
    return f"<!-- table: {name} -->"


def updated(page: str, tables: Sequence[Table]) -> str:
    """The page with these tables in place of those it has. Raises ValueError where it has no place for one."""
    for table in tables:
        place = re.compile(rf"^{re.escape(marker(table.name))}\n(\|.*\n)*", re.MULTILINE)
        text = table.markdown()
        page, found = place.subn(lambda _, text=text: text, page)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"the page has {found} places for table {table.name!r}: lines {marker(table.name)!r}")
    return page


def differences(page: str, tables: Sequence[Table]) -> list[str]:
    """One line for each row of the page that a fresh run contradicts: '- what it has', '+ what it should have'."""
    fresh = updated(page, tables)
    if fresh == page:
        return []
    old, new = page.splitlines(), fresh.splitlines()
    gone = [f"- {line}" for line in old if line.startswith("|") and line not in new]
    come = [f"+ {line}" for line in new if line.startswith("|") and line not in old]
    return [*gone, *come] or ["the tables' rows are in another order"]
