"""What a Dynamo graph does with each parameter: multiply by it, look rows up in it, scale by it.

`roles.py` knows more, from the joint graph; but that is not there where compiled code comes out of a cache. So the
Dynamo graph is read once, operation by operation, and what a value stands for is followed: a parameter, perhaps
transposed or cast, or the result of one product.
"""

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from spectral_compile.graph.roles import LOSS_OPS, RANKING

_PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "_grouped_mm", "grouped_mm")
_ADDEND = {"linear": 2, "addmm": 0, "baddbmm": 0}  # which argument is added and not multiplied
_CASTS = ("to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "detach")
_TRANSPOSES = ("t", "T", "mT", "transpose", "swapaxes", "permute")
_VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
_CUTS = ("chunk", "split", "tensor_split", "split_with_sizes")
_MIXERS = ("attention", "norm", "conv", "cat", "stack", "cumsum", "scan")  # parts of names: what mixes features


@dataclass(eq=False)
class Product:
    """A product with the weight that is input `weight` of the graph.

    features: of its result. dim: the weight's axis that they lie along, -2 or -1, None where it cannot be told.
    sizes: into which its result is cut at once, as fused QKV is. role: "head" or "router" by what becomes of the
    result, with a `reason`.
    """

    node: fx.Node
    weight: int
    features: int
    dim: int | None
    sizes: tuple[int, ...] = ()
    role: str = ""
    reason: str = ""
    slices: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class OtherUse:
    """Of a parameter in something that is no product; role "embedding", "norm", "bias" or "other"."""

    node: fx.Node
    role: str
    by: str


@dataclass
class Uses:
    """By input of the graph; returned: products whose result leaves the graph; embedded: sizes of vocabularies."""

    products: list[Product] = field(default_factory=list)
    others: dict[int, list[OtherUse]] = field(default_factory=dict)
    returned: list[Product] = field(default_factory=list)
    embedded: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Weight:
    index: int
    flipped: bool = False


@dataclass(frozen=True)
class _Result:
    """whole: the last axis is still the product's features, all of them."""

    product: Product
    whole: bool = False


_MIXED = "several products, or none"


def uses(gm: fx.GraphModule, parameters: Sequence[bool]) -> Uses:
    """Of each input of a Dynamo graph that is a parameter."""
    found = Uses()
    values = [_Weight(index) if is_one else None for index, is_one in enumerate(parameters)]
    returned = _Reader(found).read(gm, values)
    for value in returned if isinstance(returned, (tuple, list)) else [returned]:
        if isinstance(value, _Result) and value.product not in found.returned:
            found.returned.append(value.product)
    for product in found.products:
        edges = sorted(product.slices)
        tiles = len(edges) > 1 and all(a[1] == b[0] for a, b in itertools.pairwise(edges))
        if tiles and (edges[0][0], edges[-1][1]) == (0, product.features):
            product.sizes = tuple(stop - start for start, stop in edges)
    return found


class _Reader:
    def __init__(self, found: Uses) -> None:
        self.found = found

    def read(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """What a graph, or the graph of a checkpointed region in it, returns of these inputs."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given, None)
            elif node.op == "output":
                return fx.map_arg(node.args[0], lambda n: values[n])
            elif node.op != "get_attr":
                values[node] = self._node(gm, node, values)
            else:
                values[node] = None
        return None

    def _node(self, gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        inner = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        body = getattr(gm, str(inner[0].target), None) if inner else None
        if isinstance(body, fx.GraphModule):
            operands = node.args[node.args.index(inner[0]) + 1 :]
            return self.read(body, [values.get(a) for a in operands if isinstance(a, fx.Node)])
        name = op_name(node)
        of = [values[argument] for argument in node.all_input_nodes]
        if node.target is operator.getitem and isinstance(values[node.args[0]], (tuple, list)):  # type: ignore[index]
            return values[node.args[0]][node.args[1]]  # type: ignore[index]
        if name in _PRODUCTS:
            return self._product(node, name, values)
        weights = [value for value in of if isinstance(value, _Weight)]
        if name == "multi_head_attention_forward":
            return self._attention(node, values, weights)
        if weights:
            if len(of) == 1 and name in (*_CASTS, "expand_as"):
                return weights[0]
            if len(of) == 1 and name in _TRANSPOSES:
                return _Weight(weights[0].index, not weights[0].flipped)
            if len(of) == 1 and name == "getitem" and _rank(node.args[0]) == 3:  # one expert of a stack
                return weights[0]
            self._other_use(node, name, weights)
        return self._onward(node, name, [value for value in of if isinstance(value, _Result) or value is _MIXED])

    def _product(self, node: fx.Node, name: str, values: dict[fx.Node, Any]) -> Any:
        place = _ADDEND.get(name)
        addend = node.kwargs.get("bias") if place is None or len(node.args) <= place else node.args[place]
        operands = [argument for argument in node.all_input_nodes if argument is not addend]
        weights = [values[operand] for operand in operands if isinstance(values[operand], _Weight)]
        if isinstance(addend, fx.Node) and isinstance(values[addend], _Weight):
            self._other_use(node, "bias", [values[addend]])
        if len(weights) != 1:
            self._other_use(node, "product of parameters", weights)
            return _MIXED
        (weight,) = weights
        left = name != "linear" and isinstance(values[operands[0]], _Weight)
        dim = None if name == "einsum" else (-2 if (left or name == "linear") != weight.flipped else -1)
        value = node.meta.get("example_value")
        features = int(value.shape[-2 if left else -1]) if isinstance(value, torch.Tensor) and value.dim() > 1 else 0
        product = Product(node, weight.index, features, dim)
        self.found.products.append(product)
        return _Result(product, whole=dim is not None and not left)

    def _attention(self, node: fx.Node, values: dict[fx.Node, Any], weights: list[_Weight]) -> Any:
        """All of `nn.MultiheadAttention` is one call: two linears, the first of Q, K and V in one."""
        linears = [values.get(node.args[place]) for place in (5, 11) if len(node.args) > place]  # type: ignore[arg-type]
        for weight, parts in zip(linears, (3, 1), strict=False):
            if isinstance(weight, _Weight):
                width = int(node.args[3])  # type: ignore[arg-type]
                product = Product(node, weight.index, parts * width, -2, (width,) * parts if parts > 1 else ())
                self.found.products.append(product)
        self._other_use(node, "bias", [weight for weight in weights if weight not in linears])
        return _MIXED

    def _other_use(self, node: fx.Node, name: str, weights: list[_Weight]) -> None:
        role = next((role for role in ("embedding", "norm", "bias") if role in name), "other")
        for weight in weights:
            self.found.others.setdefault(weight.index, []).append(OtherUse(node, role, name))
        if role == "embedding" and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            self.found.embedded.add(int(node.args[1].meta["example_value"].shape[0]))

    def _onward(self, node: fx.Node, name: str, of: list[Any]) -> Any:
        """What becomes of a product's result, and whether it is still one."""
        if any(part in name for part in _MIXERS) or "embedding" in name:
            return _MIXED
        products = {value.product for value in of if isinstance(value, _Result)}
        if _MIXED in of or len(products) != 1:
            return _MIXED if of else None
        (product,) = products
        self._role(node, name, product)
        whole = any(isinstance(value, _Result) and value.whole for value in of)
        if whole:
            _cut(node, name, product)
        value = node.meta.get("example_value")
        if not whole or name not in (*_CASTS, *_VIEWS, "dropout") or not isinstance(value, torch.Tensor):
            return _Result(product)
        return _Result(product, whole=value.dim() > 0 and value.shape[-1] == product.features)

    def _role(self, node: fx.Node, name: str, product: Product) -> None:
        value = node.meta.get("example_value")
        scalar = name in ("sum", "mean") and isinstance(value, torch.Tensor) and value.dim() == 0
        if name in RANKING:
            product.role, product.reason = "router", "router: its result is ranked (top-k)"
        elif product.role != "router" and (scalar or any(name.lstrip("_").startswith(loss) for loss in LOSS_OPS)):
            product.role, product.reason = "head", "output head: its result goes into the loss"
        elif not product.role and (name == "argmax" or (name == "max" and not isinstance(value, torch.Tensor))):
            product.role, product.reason = "router", "router: its result is ranked (top-1)"


def op_name(node: fx.Node) -> str:
    """Of a function or a method as users know it; the attribute's, for `x.mT`."""
    if node.target is getattr:
        return str(node.args[1])
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name)


def _cut(node: fx.Node, name: str, product: Product) -> None:
    """Note where all features of a result are cut apart."""
    source, value = node.args[0], node.meta.get("example_value")
    rank = _rank(source)
    if name in _CUTS and isinstance(value, (tuple, list)):
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        if dim in (-1, rank - 1):
            product.sizes = tuple(int(part.shape[-1]) for part in value)
    elif name == "glu" and product.features % 2 == 0:
        product.sizes = (product.features // 2,) * 2
    elif name == "getitem" and isinstance(node.args[1], tuple):
        *others, last = node.args[1]
        reaches = len(node.args[1]) == rank or Ellipsis in others
        if reaches and isinstance(last, slice) and all(o is Ellipsis or o == slice(None) for o in others):
            start, stop, step = _bounds(last, product.features)
            if step == 1:
                product.slices.add((start, stop))


def _bounds(cut: slice, size: int) -> tuple[int, int, int]:
    try:
        return cut.indices(size)
    except TypeError:  # a bound that only the graph knows
        return 0, 0, 0


def _rank(node: Any) -> int:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else -1
