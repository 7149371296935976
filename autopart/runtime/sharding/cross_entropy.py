"""Cross-entropy over logits whose vocabulary is sharded.

Source: Shoeybi et al., Megatron-LM (2019). With logits z, target y, and m = max z:

    loss = log(sum_j exp(z_j - m)) - (z_y - m)

The maximum, the sum and the target's logit are the only things that cross ranks: each is one number
per row. The gradient softmax(z) - 1[j = y] needs nothing from other ranks.
"""

from typing import Any

import torch

from autopart.runtime.sharding.collectives import all_reduce, own_rows
from autopart.runtime.sharding.groups import group_named

MEAN, SUM = 1, 2
"""Torch's numbers for the reductions of a loss; 0 leaves the rows apart."""


def sharded_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, reduction: int, ignore_index: int, group: str
) -> torch.Tensor:
    """Return torch's `cross_entropy` for local `logits` (rows, vocabulary / t).

    `target` has whole vocabulary numbers. Rows whose target is `ignore_index` count nothing.
    """
    rows: torch.Tensor = _Rows.apply(logits, target, ignore_index, group)  # pyright: ignore[reportAssignmentType]
    if reduction == MEAN:
        return rows.sum() / (target != ignore_index).sum()
    return rows.sum() if reduction == SUM else rows


class _Rows(torch.autograd.Function):
    """Losses of all rows. Sums are in float32 for 16-bit logits, as in torch's own operation."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, ignore_index: int, group: str
    ) -> torch.Tensor:
        size = logits.shape[1]
        wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        highest = _over_group(wide.amax(1), "max", group)
        shifted = wide - highest[:, None]
        # Targets of other ranks, and ignored rows, read row 0 and count nothing.
        counts = target != ignore_index
        own = own_rows(target, size, group)
        is_own = counts & (own >= 0) & (own < size)
        own = own.clamp(0, size - 1)
        chosen = shifted.gather(1, own[:, None])[:, 0].masked_fill(~is_own, 0.0)
        chosen = _over_group(chosen, "sum", group)
        exponents = shifted.exp_()
        total = _over_group(exponents.sum(1), "sum", group)
        ctx.save_for_backward(exponents.div_(total[:, None]).to(logits.dtype), own, is_own, counts)
        return ((total.log() - chosen) * counts).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        likelihood, own, is_own, counts = ctx.saved_tensors
        of_rows = (gradients[0] * counts).to(likelihood.dtype)
        result = likelihood * of_rows[:, None]
        result.scatter_add_(1, own[:, None], -(of_rows * is_own)[:, None])
        return result, None, None, None


def _over_group(x: torch.Tensor, operation: str, group: str) -> torch.Tensor:
    return x if group_named(group).is_alone else all_reduce(x, operation, group)
