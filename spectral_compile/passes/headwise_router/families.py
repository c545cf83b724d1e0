"""Routers as data: how each family goes from logits to gates, and which operations a layer may be made of."""

import re

# What a chain of gates is called, and the operations that it consists of, in order, less views, casts and picks of one
# result: all of them, or the chain is not known.
_NORM = "( sum( add| clamp)? div)?( mul)?"
_GROUPS = "topk sum topk zeros_like scatter( unsqueeze expand)?( bool)? invert masked_fill"
_MAX_GROUPS = "max topk zeros_like scatter( unsqueeze expand)?( bool)? invert masked_fill"
FAMILIES: dict[str, re.Pattern[str]] = {
    name: re.compile(chain)
    for name, chain in {
        "softmax, top-k": f"softmax topk{_NORM}",
        "top-k, softmax": "topk softmax",
        "sigmoid, top-k": f"sigmoid topk{_NORM}",
        "sigmoid, bias, top-k": f"sigmoid add topk gather{_NORM}",
        "sigmoid, bias, groups, top-k": f"sigmoid add {_GROUPS} topk gather{_NORM}",
        "softmax, groups, top-k": f"softmax {_MAX_GROUPS} topk{_NORM}",
    }.items()
}

# By what Dynamo calls them, less the underscores and the i of what works in place.
CASTS = frozenset(
    ("to", "float", "half", "bfloat16", "double", "int", "long", "type", "type_as", "contiguous", "clone")
)
VIEWS = frozenset(
    ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "expand", "mT")
)
GATES = frozenset(
    (
        *("softmax", "sigmoid", "topk", "max", "sum", "add", "sub", "mul", "div", "clamp", "gather", "scatter", "bool"),
        *("zeros_like", "full_like", "masked_fill", "invert", "logical_not", "where", "getitem", "unsqueeze", "expand"),
    )
)
PRODUCTS = frozenset(("linear", "matmul", "mm", "bmm", "einsum", "grouped_mm", "grouped_mm_fallback"))
ACTIVATIONS = frozenset(
    ("silu", "gelu", "relu", "tanh", "leaky_relu", "elu", "mish", "softplus", "square", "pow", "exp")
)
DISPATCH = frozenset(
    (
        *("sort", "argsort", "floordiv", "repeat_interleave", "repeat", "histc", "bincount", "cumsum"),
        *("arange", "size"),
        *("empty_like", "setitem", "index_add", "index_select", "index_put", "scatter_add", "one_hot", "eq", "neg"),
        *("chunk", "split", "unbind", "stack", "zeros", "new_zeros", "empty", "new_empty", "ones_like", "dropout"),
    )
)
LAYER = GATES | CASTS | VIEWS | PRODUCTS | ACTIVATIONS | DISPATCH

_IGNORED = CASTS | (VIEWS - {"unsqueeze", "expand"}) | {"getitem", "size"}


def family(names: list[str]) -> str:
    """What a chain of operations is called; "" where it is not known."""
    chain = " ".join(name for name in names if name not in _IGNORED)
    return next((called for called, known in FAMILIES.items() if known.fullmatch(chain)), "")
