"""A graph's files: before any pass, and after each pass that changed it, with the difference."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from torch import fx

from spectral_compile.report.python_code import MADE_BY, python_file


class Rewrites:
    """Of one graph. kind: what its files' names begin with. first: the name of the one before any pass."""

    def __init__(self, kind: str, first: str, what: str) -> None:
        self.kind, self.first, self.what = kind, first, what
        self.name, self.text = "", ""  # as last written
        self.count = 0

    def files(self, stage: str, graph: fx.Graph) -> dict[str, str]:
        """The texts to write of the graph as it is now, by name; none where the last pass changed nothing."""
        name = f"{self.kind}_{self.count}_{stage}.py" if self.count else self.first
        text = python_file(graph, name, f"{self.what}, {f'after {stage}' if self.count else 'before any pass'}.")
        if _body(text) == _body(self.text):
            return {}
        found = {name: text}
        if self.count:
            before, after = _body(self.text).splitlines(), _body(text).splitlines()
            lines = difflib.unified_diff(before, after, self.name, name, lineterm="", n=2)
            found[name.replace(".py", ".diff")] = "\n".join(lines) + "\n"
        self.name, self.text = name, text
        self.count += 1
        return found


@contextlib.contextmanager
def marked(name: str, graphs: Iterable[fx.Graph]) -> Iterator[None]:
    """The nodes that pass `name` makes in these graphs while it runs say so."""
    before = [(graph, set(graph.nodes)) for graph in graphs]
    yield
    for graph, known in before:
        for node in graph.nodes:
            if node not in known:
                node.meta[MADE_BY] = name


def _body(text: str) -> str:
    """Without the title, which differs in every file."""
    return text.partition("import torch\n")[2]
