"""Which settings each product of a graph has: the options, and what was configured for functions and modules."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn

from spectral_compile import configure
from spectral_compile._torch import root_frame_modules
from spectral_compile.config import Options
from spectral_compile.configure import ANNOTATION, Configuration
from spectral_compile.graph.facts import all_nodes, raw_module_stack

_Settings = TypeVar("_Settings", Options, Configuration)
ROOT = ""  # in place of a path: the module whose forward is compiled, which is absent from its own products' stacks


@dataclass(frozen=True)
class Scopes:
    """base: the options, with what functions around the compiled one say. modules: by path, as Dynamo writes it.
    functions: by annotation. all_options: the settings of any node of the graph, each once.
    """

    base: Options
    modules: tuple[tuple[str, Configuration], ...] = ()
    functions: tuple[tuple[str, Configuration], ...] = ()
    all_options: tuple[Options, ...] = ()

    def of(self, node: fx.Node) -> Options:
        """The settings of a product, by the forward node that it belongs to."""
        options = self.base
        for configuration in self.around(node):
            options = configuration.over(options)
        return options

    def excluded(self, node: fx.Node) -> bool:
        """Whether `exclude` was said of anything around a node."""
        return any(configuration.excluded for configuration in self.around(node))

    def around(self, node: fx.Node) -> Iterator[Configuration]:
        """What is configured around a node, outermost first: functions, then modules."""
        modules, functions = dict(self.modules), dict(self.functions)
        yield from (functions[note] for note in annotations(node) if note in functions)
        paths = (ROOT, *(path for path, _ in raw_module_stack(node)))
        yield from (modules[path] for path in paths if path in modules)


def gather(gm: fx.GraphModule, options: Options) -> Scopes:
    """What is configured for the modules and functions that a Dynamo graph was traced from."""
    around = configure.of_function()
    base = options if around is None else around.over(options)
    if around is not None and around.excluded:
        base = Configuration(exclude=("",)).over(base)
    kinds_by_path = holders(gm)
    called = {id(holder) for kinds in kinds_by_path.values() for holder in kinds}
    found = {path: _of(kinds, called) for path, kinds in kinds_by_path.items()}
    noted = dict.fromkeys(note for node in all_nodes(gm) for note in annotations(node))
    scopes = Scopes(
        base,
        tuple((path, configuration) for path, configuration in found.items() if configuration is not None),
        tuple((note, configure.of_annotation(note)) for note in noted),
    )
    settings = dict.fromkeys((base, *(scopes.of(node) for node in all_nodes(gm))))
    return dataclasses.replace(scopes, all_options=tuple(settings))


def without(kind: type, scopes: Scopes) -> Scopes:
    """The same, with no settings of one pass anywhere."""

    def less(one: _Settings) -> _Settings:
        return dataclasses.replace(one, passes=tuple(p for p in one.passes if type(p) is not kind))

    return Scopes(
        less(scopes.base),
        tuple((path, less(configuration)) for path, configuration in scopes.modules),
        tuple((note, less(configuration)) for note, configuration in scopes.functions),
        tuple(dict.fromkeys(map(less, scopes.all_options))),
    )


Holder = type | nn.Module


def holders(gm: fx.GraphModule) -> dict[str, tuple[Holder, ...]]:
    """For each path in a graph, the class and, where it can be found, the module that settings may be on."""
    roots = root_frame_modules()
    by_id = {str(id(module)): module for root in roots.values() for module in root.modules()}
    for reached in by_id.values():
        if configure.of_holder(reached) is not None:
            configure.remember(reached)
    by_id |= {str(id(module)): module for module in configure.inside_configured()}
    found: dict[str, tuple[Holder, ...]] = {}
    if (root := roots.get("self")) is not None:
        found[ROOT] = (type(root), root)
    for node in all_nodes(gm):
        for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
            module = by_id.get(str(key).partition("@")[0])  # what follows @ numbers the calls of a module
            if isinstance(kind, type):
                found[path] = (kind,) if module is None else (kind, module)
    return found


def all_holders(gm: fx.GraphModule) -> tuple[Holder, ...]:
    """All classes and modules in a graph, each once."""
    return tuple(dict.fromkeys(holder for kinds in holders(gm).values() for holder in kinds))


def annotations(node: fx.Node) -> list[str]:
    """What decorated functions left on a node, outermost first."""
    return [key for key in node.meta.get("custom") or {} if str(key).startswith(ANNOTATION)]


def _of(kinds: tuple[Holder, ...], called: set[int]) -> Configuration | None:
    """Of a class and a module, and of what holds the module without a path of its own in the graph."""
    found: Configuration | None = None
    around = [one for holder in kinds if isinstance(holder, nn.Module) for one in configure.enclosing(holder)]
    for holder in (*(one for one in around if id(one) not in called), *kinds):
        own = configure.of_holder(holder)
        found = own.inside(found) if own is not None else found
    return found
