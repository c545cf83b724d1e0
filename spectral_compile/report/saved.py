"""The memory that a forward pass keeps for its backward, counted while it runs.

The plan says what could be saved smaller; the partitioner decides. This is what came of it.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


def saved_bytes(forward: Callable[[], object], leave_out: Iterable[nn.Module | Tensor] = ()) -> int:
    """Run `forward()` once and return the bytes that its autograd graph keeps alive for backward.

    >>> saved_bytes(lambda: model(tokens, targets), leave_out=[model, tokens, targets])

    Each storage counts once and whole, however many saved tensors view it: a slice keeps all of it alive.
    `leave_out` names what is alive anyway: a module stands for its parameters and buffers, a tensor for its
    storage. Whatever shares no storage with these counts, as the bf16 copies of weights that autocast makes.
    What was freed again before `forward` returned does not, nor what activation checkpointing recomputes.

    Works for eager models and for those compiled through AOTAutograd (Inductor, spectral): counting neither
    recompiles them nor changes their gradients. Not seen: tensors that an `autograd.Function` of the user's
    keeps on `ctx` itself instead of passing them to `ctx.save_for_backward`.
    """
    exempt = {_storage(tensor) for item in leave_out for tensor in _tensors(item)}
    saved: dict[StorageWeakRef, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # an output kept as it is would own its own graph: a cycle

    with saved_tensors_hooks(pack, _identity):
        outputs = forward()
    kept = sum(size for storage, size in saved.items() if storage not in exempt and not storage.expired())
    del outputs  # only now: the graph had to live until its storages were counted
    return kept


def _storage(tensor: Tensor) -> StorageWeakRef:
    """The tensor's storage as a key: does not keep it alive, and no later storage is mistaken for it."""
    return StorageWeakRef(tensor.untyped_storage())


def _tensors(item: nn.Module | Tensor) -> list[Tensor]:
    return [item] if isinstance(item, Tensor) else [*item.parameters(), *item.buffers()]


def _identity(tensor: Tensor) -> Tensor:
    return tensor
