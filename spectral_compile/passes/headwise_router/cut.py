"""One head's copy of a layer: its own slice of the features, through the same operations, into the same experts.

What the layer does with tokens, however it dispatches them, is copied operation by operation. Along the features, axis
d, the copy sees d / H of them: the router's weight and the experts' up-projections lose the other columns, and where
the outputs are concatenated the down-projections lose the other rows. Numbers in the program that stand for d, or for
how many experts a token goes to, are changed with it; whatever does not fit then is refused.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spectral_compile._torch import statically_known_true
from spectral_compile.passes.headwise_router.families import VIEWS
from spectral_compile.passes.headwise_router.flow import name_of, shape, value
from spectral_compile.passes.headwise_router.match import LayerError, Router
from spectral_compile.passes.headwise_router.writer import Writer

_BROADCAST = frozenset(
    ("add", "sub", "mul", "div", "where", "setitem", "index_add", "scatter_add", "gather", "scatter")
)
_FACTORIES = frozenset(("zeros", "new_zeros", "empty", "new_empty"))
_LIKE = frozenset(("zeros_like", "empty_like", "ones_like"))


@dataclass(frozen=True)
class Split:
    """heads: H. scale: what head logits are multiplied by. top_k: experts that a head's slice goes to.
    cut_output: outputs are d / H wide and concatenated, not d wide and summed.
    """

    heads: int
    scale: float
    top_k: int
    cut_output: bool = True


class Head:
    """Copies a layer for one head; `of` says what each node has become."""

    def __init__(self, writer: Writer, router: Router, split: Split, head: int) -> None:
        self.writer, self.router, self.split = writer, router, split
        self.width = router.features // split.heads
        self.start = head * self.width
        self.of: dict[fx.Node, fx.Node] = {router.base: self._slice(router.base, -1)}
        self.narrow: set[fx.Node] = {router.base}  # what has this head's features, of those in `of`

    def run(self, nodes: list[fx.Node]) -> None:
        """Copy nodes, which are in order; those that were given a value in `of` already are left out."""
        for node in nodes:
            if node not in self.of:
                self.of[node] = self._copy(node)
                if node not in self.router.weight_of and self._keeps_features(node):
                    self.narrow.add(node)

    def _slice(self, node: fx.Node, axis: int) -> fx.Node:
        return self.writer.narrow(node, axis, self.start, self.width)

    def _copy(self, node: fx.Node) -> fx.Node:
        given: Any = fx.map_arg((node.args, node.kwargs), lambda n: self.of.get(n, n))
        args, kwargs = list(given[0]), dict(given[1])
        name = name_of(node)
        if node is self.router.logits:
            return self.logits(args)
        if node in self.router.weight_of:
            return self.product(node, args, kwargs)
        if name in VIEWS:
            args = self._resize(node, args)
        elif name in _BROADCAST:
            args = self._fit(node, args)
        elif name in _FACTORIES and self.split.cut_output:
            args = self._narrower(args)
        elif name in _LIKE and not self.split.cut_output:
            args[0] = node.args[0] if node.args[0] in self.narrow else args[0]
        if self.split.top_k != self.router.top_k:
            args, kwargs = self._choices(node, name, args, kwargs)
        return self._checked(node, args, kwargs)

    def logits(self, args: list[Any]) -> fx.Node:
        """[T, E]: x_h W_h', of this head's columns; its sum over the heads is the original. A bias is shared evenly."""
        writer, (x, weight, *bias) = self.writer, args
        bias = [writer.call(operator.truediv, bias[0], self.split.heads)] if bias and bias[0] is not None else []
        logits = writer.call(torch.nn.functional.linear, x, self._slice(weight, -1), *bias)
        return logits if self.split.scale == 1 else writer.call(operator.mul, logits, self.split.scale)

    def product(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> fx.Node:
        """A product with the experts' weights, of which this head has its columns, or its rows."""
        place = self.router.weight_of[node]
        inner, outer, _ = weight_axes(node, place)
        if self._reads_features(node):
            args = self._with_weight(node, args, place, inner)
        elif node in self.router.down and self.split.cut_output:
            args = self._with_weight(node, args, place, outer)
            self.narrow.add(node)
            if name_of(node) == "linear" and len(args) > 2 and args[2] is not None:
                args[2] = self._slice(args[2], -1)
        return self._checked(node, args, kwargs)

    def contracted(self, node: fx.Node, args: list[Any]) -> list[Any]:
        """The arguments of a product of all features, with this head's alone in both operands."""
        place = self.router.weight_of[node]
        inner, _, features = weight_axes(node, place)
        cut = self._with_weight(node, args, place, inner)
        if name_of(node) != "einsum":
            cut[1 - place] = self._slice(cut[1 - place], features)
        elif isinstance(cut[1], tuple):
            cut[1] = tuple(self._slice(one, features) if i != place else one for i, one in enumerate(cut[1]))
        else:
            cut[2 - place] = self._slice(cut[2 - place], features)
        return cut

    def _reads_features(self, node: fx.Node) -> bool:
        """Whether an operand has this head's features."""
        return any(one in self.narrow for one in node.all_input_nodes)

    def _keeps_features(self, node: fx.Node) -> bool:
        """Whether what reads a head's features has them still: a product would not, nor do logits."""
        if node is self.router.logits or not self._reads_features(node):
            return False
        pairs = zip(shape(node), shape(self.of[node]), strict=False)
        return not shape(node) or any(old == self.router.features and new == self.width for old, new in pairs)

    def _has_other_choices(self, node: Any) -> bool:
        """Whether a node's copy has another number of experts for each token than the node."""
        if not isinstance(node, fx.Node) or node not in self.of:
            return False
        pairs = list(zip(shape(node), shape(self.of[node]), strict=False))
        if node in self.narrow:  # but for the last axis that may be that of the features
            last = max(i for i, (old, new) in enumerate(pairs) if (old, new) == (self.router.features, self.width))
            del pairs[last]
        return any(not statically_known_true(old == new) for old, new in pairs)

    def _with_weight(self, node: fx.Node, args: list[Any], place: int, axis: int) -> list[Any]:
        """The product's arguments with the weight cut along an axis; where an expert's weight is picked for each token,
        before it is picked.
        """
        in_list = name_of(node) == "einsum" and isinstance(args[1], (list, tuple))
        operands = list(args[1] if in_list else args[1:] if name_of(node) == "einsum" else args)
        weight = operands[place]
        original = next((old for old, new in self.of.items() if new is weight), None)
        picks = original is not None and name_of(original) in ("getitem", "index_select")
        if picks and isinstance(original.args[1], fx.Node):  # type: ignore[union-attr]
            stack, ids = weight.args
            operands[place] = self.writer.call(operator.getitem, self._slice(stack, axis), ids)
        else:
            operands[place] = self._slice(weight, axis)
        if in_list:
            return [args[0], tuple(operands)]
        return [args[0], *operands] if name_of(node) == "einsum" else operands

    def _resize(self, node: fx.Node, args: list[Any]) -> list[Any]:
        """Sizes that a view names: of the features, and of the experts that a token goes to."""
        nested = len(args) > 1 and isinstance(args[1], (list, tuple))
        sizes = list(args[1]) if nested else args[1:]
        if name_of(node) not in ("view", "reshape", "expand", "unflatten") or not sizes:
            return args
        if node.args[0] in self.narrow and isinstance(sizes[-1], int) and sizes[-1] == self.router.features:
            sizes[-1] = self.width
        old, new = self.router.top_k, self.split.top_k
        if self._has_other_choices(node.args[0]) and len(sizes) == len(shape(node)) and name_of(node) != "expand":
            if len(sizes) == 3 and sizes[1] == old:
                sizes[1] = new
            elif self._is_pairs(shape(node)[0]) and -1 not in sizes:
                sizes[0] = -1
        return [args[0], tuple(sizes)] if nested else [args[0], *sizes]

    def _fit(self, node: fx.Node, args: list[Any]) -> list[Any]:
        """Operands as wide as all features, beside others that are a head's: a head's share of them."""
        if not self._reads_features(node):
            return args
        ours = {self.of[one] for one in node.all_input_nodes if one in self.narrow}
        fitted = []
        for one in args:
            whole = isinstance(one, fx.Node) and one not in ours and shape(one)[-1:] == (self.router.features,)
            if whole and not value(one).dtype.is_floating_point and value(one).dtype != torch.bool:
                one = self.writer.narrow(one, -1, 0, self.width)  # an index, the same for all features
            elif whole and self.width != self.router.features:
                one = self._slice(one, -1)
            fitted.append(one)
        return fitted

    def _narrower(self, args: list[Any]) -> list[Any]:
        def last(sizes: Any) -> Any:
            if isinstance(sizes, (list, tuple)) and sizes and sizes[-1] == self.router.features:
                return (*sizes[:-1], self.width)
            return sizes

        if args and isinstance(args[-1], int) and args[-1] == self.router.features:
            return [*args[:-1], self.width]
        return [last(one) for one in args]

    def _choices(
        self, node: fx.Node, name: str, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Where the number of experts that a token goes to stands in the program."""
        old, new, indices = self.router.top_k, self.split.top_k, self.router.found.indices
        if name == "topk" and node is indices.args[0]:
            if "k" in kwargs:
                return args, {**kwargs, "k": new}
            return [args[0], new, *args[2:]], kwargs
        if name in ("floordiv", "repeat_interleave") and args[1] == old and isinstance(value(args[0]), Tensor):
            return [args[0], new, *args[2:]], kwargs
        if name == "arange" and self._is_pairs(value(args[0]) if isinstance(args[0], fx.Node) else args[0]):
            return [self.writer.method("numel", self.of[indices]), *args[1:]], kwargs
        return args, kwargs

    def _is_pairs(self, extent: Any) -> bool:
        """Whether a number is that of tokens times the experts that each goes to."""
        return statically_known_true(extent == value(self.router.found.indices).numel())

    def _checked(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> fx.Node:
        try:
            copied = self.writer.node(node.op, node.target, args, kwargs, like=node)
        except Exception as error:  # of torch's shape functions: any operation may have its own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LayerError(f"{name_of(node)} ({node.name}) does not work on a head's slice: {first}") from None
        before, after = shape(node), shape(copied)
        if len(before) != len(after) or not all(map(self._may_become, before, after)):
            raise LayerError(f"{name_of(node)} ({node.name}) is {list(before)}, and of a head's slice {list(after)}")
        return copied

    def _may_become(self, old: Any, new: Any) -> bool:
        if statically_known_true(old == new):
            return True
        if old == self.router.features and new == self.width:
            return True
        if self.split.top_k == self.router.top_k:
            return False
        pairs = statically_known_true(new * self.router.top_k == old * self.split.top_k)
        return (old == self.router.top_k and new == self.split.top_k) or pairs


def weight_axes(node: fx.Node, place: int) -> tuple[int, int, int]:
    """Of a weight in a product: the axis that is contracted, and that of what comes out; and the other operand's axis
    that is contracted.
    """
    name = name_of(node)
    if name == "linear":
        return -1, -2, -1
    if name != "einsum":
        return (-2, -1, -1) if place == 1 else (-1, -2, -2)
    equation = str(node.args[0]).replace(" ", "")
    terms, arrow, out = equation.partition("->")
    operands = terms.split(",")
    if not arrow or "." in equation or len(operands) != 2:
        raise LayerError(f"einsum {equation!r}: say its output, two operands and no ellipsis")
    weight, other = operands[place], operands[1 - place]
    inner = [i for i, letter in enumerate(weight) if letter in other and letter not in out]
    outer = [i for i, letter in enumerate(weight) if letter == out[-1:] and letter not in other]
    if len(inner) != 1 or len(outer) != 1:
        raise LayerError(f"einsum {equation!r} is no product of tokens with experts' matrices")
    return inner[0] - len(weight), outer[0] - len(weight), other.index(weight[inner[0]]) - len(other)
