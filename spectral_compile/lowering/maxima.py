"""The largest magnitudes by which tensors are scaled, each looked for once: for the lowerings of every device."""

import operator
from collections import Counter
from typing import Any

import torch
from torch import fx

from spectral_compile.formats import FORMATS
from spectral_compile.graph.emit import Emitter

spectral = torch.ops.spectral

# The operators that find a mean: what takes their place, and after which results of them, as mean and rows of a
# quantiser, the largest magnitude is which result.
_WITH_AMAX: dict[Any, tuple[Any, dict[tuple[int, int | None], int]]] = {
    spectral.token_mean.default: (spectral.token_mean_amax.default, {(0, None): 1}),
    spectral.token_mean_nonzero.default: (spectral.token_mean_nonzero_amax.default, {(0, 1): 4, (3, None): 5}),
}


def find_amax_once(emit: Emitter, quantizers: list[fx.Node]) -> None:
    """Quantisations of one tensor along both axes look for the same largest magnitude; and the read that its mean takes
    finds it as well.
    """
    plain = [node for node in quantizers if has_tensor_scale(node.args[4]) and not node.args[8]]  # no Hadamard
    for mean in dict.fromkeys(_mean_of(node) for node in plain):
        if mean is not None:
            _also_amax(emit, mean, plain)
    readers = Counter(node.args[:3] for node in plain if len(node.args) == 10)
    for node in plain:
        if readers[node.args[:3]] > 1:
            node.args = (*node.args[:10], emit.call(spectral.amax.default, node.args[:3], like=node))


def has_tensor_scale(format: Any) -> bool:
    """Whether a format scales by the largest magnitude of the whole tensor."""
    return format in FORMATS and FORMATS[format].tensor_scale is not None


def _mean_of(quantizer: fx.Node) -> fx.Node | None:
    """The operator that found the mean which a quantiser takes out of its operand; None where there is none, or where
    it is not that operand's.
    """
    x, mean = quantizer.args[:2]
    if not isinstance(mean, fx.Node):
        return None
    source: Any = mean.args[0] if mean.target is operator.getitem else mean
    return source if source.target in _WITH_AMAX and source.args[0] is x else None


def _also_amax(emit: Emitter, mean: fx.Node, quantizers: list[fx.Node]) -> None:
    """Have the largest magnitudes found together with the mean, and given to the quantisers that take it out."""
    target, places = _WITH_AMAX[mean.target]
    together = emit.call(target, mean.args, like=mean)
    results = emit.outputs(together, len(together.meta["val"]))
    if mean.target is spectral.token_mean.default:
        mean.replace_all_uses_with(results[0])
    else:
        for result in list(mean.users):
            result.replace_all_uses_with(results[result.args[1]])  # type: ignore[index]
    for (taken, counting), place in places.items():
        operand = (mean.args[0], results[taken], None if counting is None else results[counting])
        for node in quantizers:
            if node.args[:3] == operand:
                node.args = (*node.args[:10], results[place])
