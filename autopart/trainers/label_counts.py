"""Labels that count in a loss, by which microbatches of unequal padding are weighted.

A model's loss is the mean over a microbatch's labels. Padding is labelled -100 and does not count. So the
loss of a batch is the mean over its microbatches, each weighted by its number of labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.text import counted

IGNORED = -100
"""The label of padding, in torch and in transformers."""

Count = Callable[[Mapping[str, Any]], float | None]
"""The number of labels of a microbatch that count; None where it has none to count."""


def counter_for(model: nn.Module) -> Count:
    """How labels count for a model: one that predicts the next token never predicts the first one.

    `loss_function` is what models of transformers make their loss with.
    """
    config, loss = getattr(model, "config", None), getattr(model, "loss_function", None)
    is_causal = getattr(loss, "__name__", "") == "ForCausalLMLoss"
    skipped = int(is_causal and not getattr(config, "is_encoder_decoder", False))

    def count(inputs: Mapping[str, Any]) -> float | None:
        labels = inputs.get("labels")
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
            return None
        return float(labels[..., skipped:].ne(IGNORED).sum())

    return count


def weights_of(
    counts: Sequence[float | None], total: float | None = None
) -> dict[int, float] | None:
    """Each microbatch's weight; None where all weigh 1.

    `total` is the number by which the trainer divides the sum over labels, for example that of several
    batches. Default: the labels of all microbatches, and then the mean weight is 1.
    """
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or (total is None and len(set(known)) == 1):
        return None
    whole = sum(known) if total is None else total
    if not whole:
        raise UsageError(f"all labels of the batch are {IGNORED}, so it has no loss; leave it out")
    return {m: len(known) * count / whole for m, count in enumerate(known)}


def padded(inputs: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A batch of fewer samples made whole with copies of its first one, whose labels do not count.

    Raises UsageError without labels, because copies would count then.
    """
    rows = num_samples(inputs)
    if rows == size:
        return dict(inputs)
    labels = inputs.get("labels")
    if rows > size or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        raise UsageError(
            f"a batch of {counted(rows, 'sample')} does not fit the plan's {size}, and has no whole numbers as labels by "
            f"which padding is left out; give batches of {size}"
        )

    def whole(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            return leaf
        more = leaf[:1].expand(size - rows, *leaf.shape[1:])
        if name == "labels":
            more = torch.full_like(more, IGNORED)
        return torch.cat([leaf, more])

    return {name: whole(name, leaf) for name, leaf in inputs.items()}


def num_samples(inputs: Mapping[str, Any]) -> int:
    """The samples of a batch: the first dimension of its first tensor."""
    for leaf in inputs.values():
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise UsageError("the batch has no tensor with samples along its first dimension")
