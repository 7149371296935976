"""Divides a batch into microbatches."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.runtime.models.model import Batch
from autopart.text import counted


def split_batch(batch: Batch, num_microbatches: int) -> Sequence[Batch]:
    """A batch's microbatches: each tensor is divided along its first dimension, if it has one.

    Raises UsageError if a first dimension is not divisible by `num_microbatches`.
    """

    def part(m: int, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            return leaf
        size, rest = divmod(leaf.shape[0], num_microbatches)
        if rest:
            raise UsageError(
                f"a batch tensor of shape {tuple(leaf.shape)} cannot be divided into "
                f"{counted(num_microbatches, 'microbatch')} along its first dimension; give a mapping of "
                "microbatches instead"
            )
        return leaf[m * size : (m + 1) * size]

    return [cast(Batch, pytree.tree_map(partial(part, m), batch)) for m in range(num_microbatches)]
