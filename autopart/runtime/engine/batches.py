"""Divides a batch into microbatches."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.rank_group import Group, group_size
from autopart.runtime.models.model import Batch
from autopart.runtime.transforms.seeded_draws import SamplePart
from autopart.text import counted


def samples_of_place(plan: Plan, place: int) -> SamplePart | None:
    """The part of each microbatch's samples at a place of a rank group; None where all have all."""
    if not isinstance(plan.group, Group) or plan.group.data == 1:
        return None
    return SamplePart(place // (group_size(plan.group) // plan.group.data), plan.group.data)


def own_samples(batch: Batch, size: int, part: SamplePart) -> Batch:
    """A part of a microbatch with `size` samples.

    Tensors whose first dimension is `size` are divided. All others are for all samples, and stay whole.
    """

    def own(leaf: Any) -> Any:
        has_samples = isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == size
        # A copy: a view would keep the samples of all processes.
        return part.own(leaf).clone() if has_samples else leaf

    return cast(Batch, pytree.tree_map(own, batch))


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
