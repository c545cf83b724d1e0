"""Which weights of a Dynamo graph are smoothed when their optimizer steps, and why the others are not.

Decides only, and changes nothing in the graph: `backend.py` attaches, `optim/attached.py` acts. The graph is the
Dynamo graph, because a compile that finds its code in a cache sees no other.
"""

import operator
import re
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from spectral_compile.config import Options
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.graph.provenance import layer_path
from spectral_compile.graph.roles import HEAD_NAMES
from spectral_compile.graph.uses import OtherUse, Product, Uses, uses
from spectral_compile.plan import WeightPlan
from spectral_compile.recipes import ROLES, Rule, WeightSmoothing
from spectral_compile.rules import find_rule
from spectral_compile.scopes import Scopes

Asked = tuple[int, WeightPlan, WeightSmoothing]
_AUGMENTED = ("iadd", "isub", "imul", "itruediv")  # p -= lr * g


def weight_smoothing(
    gm: fx.GraphModule, example_inputs: Sequence[Any], facts: GraphFacts, scopes: Scopes
) -> list[Asked]:
    """For each trainable parameter, by its place among the inputs, what is done to it by whose settings.

    Parameters that are not smoothed are in the list as well: their gradients count for the norm that triggers.
    """
    if not any(options.find(WeightSmoothing) for options in (scopes.base, *scopes.all_options)):
        return []
    trained = [
        name is not None and value.requires_grad for name, value in zip(facts.inputs, example_inputs, strict=True)
    ]
    found = uses(gm, trained)
    asked: list[Asked] = []
    for index in (index for index, is_trained in enumerate(trained) if is_trained):
        products = [product for product in found.products if product.weight == index]
        others = found.others.get(index, [])
        nodes = [*(product.node for product in products), *(use.node for use in others)]
        options = scopes.of(nodes[0]) if nodes else scopes.base
        settings = options.find(WeightSmoothing)
        if settings is not None:
            name = facts.inputs[index] or ""
            plan = _plan(name, example_inputs[index], products, others, found, settings)
            if not plan.reason:
                plan = _unless_excluded(plan, nodes, facts, scopes, options)
            asked.append((index, plan, settings))
    return asked


def stepped_here(gm: fx.GraphModule) -> list[nn.Parameter]:
    """The parameters of a compiled optimizer step, which Dynamo makes attributes of its graph."""
    held = (operator.attrgetter(str(node.target))(gm) for node in gm.graph.find_nodes(op="get_attr"))
    return [value for value in held if isinstance(value, nn.Parameter)]


def updated_by_hand(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> bool:
    """Whether a graph writes to a trainable parameter that it was given: an update without an optimizer."""
    trained = {
        node
        for node, value in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
        if isinstance(value, nn.Parameter) and value.requires_grad
    }
    return any(written in trained for node in gm.graph.nodes for written in _written(node))


def _written(node: fx.Node) -> list[Any]:
    """What a call writes to, by torch's naming of operators that work in place; behind `.data` and `.detach()` too."""
    in_place = re.search(r"[^_]_$", _name(node)) or _name(node) in _AUGMENTED
    if not in_place or node.op not in ("call_method", "call_function") or not node.args:
        return []
    first = node.args[0]
    found = list(first) if isinstance(first, (list, tuple)) else [first]
    for place, one in enumerate(found):
        while isinstance(one, fx.Node) and _name(one) in ("detach", "_get_data_attr"):
            one = found[place] = one.args[0]
    return found


def _name(node: fx.Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def splits_without_effect(asked: Sequence[Asked]) -> list[str]:
    """Expressions in `split` that match no parameter of this graph."""
    names = [plan.name for _, plan, _ in asked]
    said = dict.fromkeys(expression for *_, settings in asked for expression, _ in settings.split)
    return [expression for expression in said if not any(re.search(expression, name) for name in names)]


def _plan(
    name: str,
    parameter: Any,
    products: list[Product],
    others: list[OtherUse],
    found: Uses,
    settings: WeightSmoothing,
) -> WeightPlan:
    shape = tuple(parameter.shape)
    roles = [use.role for use in others]
    if "embedding" in roles:
        tied = ", and it multiplies: tied" if products else ""
        return WeightPlan(name, shape, "embedding", f"embedding: its rows are looked up{tied}")
    if len(shape) < 2:
        return WeightPlan(name, shape, "norm" if "norm" in roles else "vector", "no matrix")
    special = next((product for product in products if product.role), None)
    if special is not None:
        return WeightPlan(name, shape, special.role, special.reason)
    if any(_looks_like_a_head(name, product, found) for product in products):
        return WeightPlan(name, shape, "head", "output head: its result leaves the graph, by name or by width")
    if others or not products:
        by = f"used in {others[0].by!r}" if others else "used by nothing"
        return WeightPlan(name, shape, "other", f"no weight of a linear: {by}")
    if len(shape) > 3 or min(shape[-2:]) == 1:
        return WeightPlan(name, shape, "other", f"no matrix, and no stack of them: {' x '.join(map(str, shape))}")
    role = "hidden" if len(shape) == 2 else "experts"
    dim = products[0].dim or -2
    cut = next((product.sizes for product in products if product.sizes), ())
    given = next((parts for expression, parts in settings.split if re.search(expression, name)), None)
    if isinstance(given, int):
        cut = (shape[dim] // given,) * given
    elif given is not None:
        cut = given
    if cut and sum(cut) != shape[dim]:
        return WeightPlan(name, shape, role, f"split into {list(cut)} does not fit axis {dim}")
    return WeightPlan(name, shape, role, "", cut if len(cut) > 1 else (), dim)


def _unless_excluded(
    plan: WeightPlan, nodes: Sequence[fx.Node], facts: GraphFacts, scopes: Scopes, options: Options
) -> WeightPlan:
    """What the user wants left alone is; rules of a recipe are about precision."""
    path = layer_path(nodes[0]) or plan.name.rpartition(".")[0]
    layer = plan.name if plan.role == "experts" else path  # as in the plan: a module of experts has several stacks
    rule: Rule | None = find_rule(options.own_rules(), layer, "fprop", sorted(facts.layers))
    if any(scopes.excluded(node) for node in nodes):
        reason = "excluded: spectral_compile.exclude was said of its module or function"
    elif rule is not None and rule.high_precision and set(rule.gemms) == set(ROLES):
        reason = f"excluded by the rule for {rule}"
    else:
        return plan
    return WeightPlan(plan.name, plan.shape, plan.role, reason)


def _looks_like_a_head(name: str, product: Product, found: Uses) -> bool:
    if product not in found.returned:
        return False
    layer = layer_path(product.node) or name.rpartition(".")[0]
    return bool(HEAD_NAMES.search(layer)) or (product is found.products[-1] and product.features in found.embedded)
