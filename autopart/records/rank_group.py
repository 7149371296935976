"""Rank groups: the GPUs that run a stage's replica together, as a grid of tensor, context, expert and data degrees.

A group is an even part of a node, or whole nodes (autopart/records/groups_on_nodes.py). Its GPU at place (h, i, j, k) has number ((h x expert + i) x context + j) x tensor + k, for
h < data, i < expert, j < context and k < tensor. A plan counts groups as ranks.
"""

import math
from typing import Annotated, Literal

import msgspec

from autopart.text import counted
from autopart.units import PositiveCount

MOST_DEGREE = 4096
"""The largest degree that a file may have."""

Degree = Annotated[int, msgspec.Meta(ge=1, le=MOST_DEGREE)]
Shard = Literal["zero2", "zero3"]
Reduce = Literal["microbatch", "step"]
Among = Literal["tensor", "context", "expert", "data"]


class Group(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The GPUs of one rank, and what they share. Rank q is the GPUs q x size to q x size + size - 1."""

    tensor: Degree = 1
    """Tensor degree: GPUs that run each layer together, each with its shard of the weights."""
    sequence_parallel: bool = False
    """Whether they also split the sequence where layers need no whole tensors."""
    context: Degree = 1
    """Context degree: GPUs that each have their part of every sequence, and whole weights."""
    exchange: Literal["ring"] | msgspec.UnsetType = msgspec.UNSET
    """How they exchange keys and values: around a ring in as many turns as there are GPUs. Absent for one gather."""
    expert: Degree = 1
    """Expert degree: GPUs that each have their part of a microbatch's samples, and of the experts."""
    data: Degree = 1
    """Shard degree: GPUs that each have their part of a microbatch's samples, and of the state."""
    shard: Shard | msgspec.UnsetType = msgspec.UNSET
    """The state that those GPUs share: zero2 without the weights, zero3 with them. Absent with a shard degree of 1."""
    reduce: Reduce | msgspec.UnsetType = msgspec.UNSET
    """When their gradients are summed and scattered: after each microbatch, or once per step. Absent without `shard`."""

    def __post_init__(self) -> None:
        if group_size(self) == 1:
            raise ValueError("a rank group of 1 GPU: leave the group out")
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel needs a tensor degree above 1")
        if self.exchange is not msgspec.UNSET and self.context == 1:
            raise ValueError("exchange needs a context degree above 1")
        sharded = self.shard is not msgspec.UNSET
        if sharded != (self.data > 1) or sharded != (self.reduce is not msgspec.UNSET):
            raise ValueError("data above 1, shard and reduce stand together, or none of them")


class StageDegrees(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensor degrees among which each stage has its own, at least two of them in a plan."""

    degrees: tuple[PositiveCount, ...]
    """The degrees, smallest first."""
    sequence_parallel: bool
    """Whether degrees above 1 have sequence parallelism."""


MaybeGroup = Group | msgspec.UnsetType
"""A rank group; unset where each rank is one GPU."""


def group_size(group: MaybeGroup) -> int:
    """GPUs per rank, from 1 on."""
    if not isinstance(group, Group):
        return 1
    return group.tensor * group.context * group.expert * group.data


def degrees_of(group: MaybeGroup) -> tuple[int, int, int]:
    """The tensor degree, the context degree and the expert degree, from 1 on."""
    if not isinstance(group, Group):
        return 1, 1, 1
    return group.tensor, group.context, group.expert


def tensor_group(degree: int, *, sequence_parallel: bool) -> MaybeGroup:
    """The rank group with a tensor degree alone; unset for 1."""
    if degree == 1:
        return msgspec.UNSET
    return Group(tensor=degree, sequence_parallel=sequence_parallel)


def tensor_degree(group: MaybeGroup) -> int:
    """GPUs that run each layer together, from 1 on."""
    return group.tensor if isinstance(group, Group) else 1


def shard_degree(group: MaybeGroup) -> int:
    """GPUs that divide each microbatch's samples and the state, from 1 on."""
    return group.data if isinstance(group, Group) else 1


def context_degree(group: MaybeGroup) -> int:
    """GPUs that divide each sequence, from 1 on."""
    return group.context if isinstance(group, Group) else 1


def has_ring(group: MaybeGroup) -> bool:
    """Whether keys and values go around a ring of the GPUs that divide each sequence."""
    return isinstance(group, Group) and group.exchange == "ring"


def expert_degree(group: MaybeGroup) -> int:
    """GPUs that divide each layer's experts, from 1 on."""
    return group.expert if isinstance(group, Group) else 1


def without_shard(group: MaybeGroup) -> MaybeGroup:
    """The group whose GPUs share no samples and no state: unset where that is one GPU."""
    if not isinstance(group, Group) or math.prod(degrees_of(group)) == 1:
        return msgspec.UNSET
    return msgspec.structs.replace(group, data=1, shard=msgspec.UNSET, reduce=msgspec.UNSET)


def samples_per_gpu(microbatch_size: int, group: MaybeGroup) -> int:
    """Samples of a microbatch on each GPU of a group: those of a shard degree divide them."""
    return microbatch_size // group.data if isinstance(group, Group) else microbatch_size


def is_tensor_only(group: MaybeGroup) -> bool:
    """Whether a group is a tensor group, or one GPU."""
    return not isinstance(group, Group) or group.context == group.expert == group.data == 1


def group_name(group: MaybeGroup) -> str:
    """A group in words, such as "tensor degree 2, context degree 4, zero3 over 2 GPUs"."""
    if not isinstance(group, Group):
        return "tensor degree 1"
    parts: list[str] = []
    if group.tensor > 1:
        parts.append(
            f"tensor degree {group.tensor}" + " with sequence parallelism" * group.sequence_parallel
        )
    if group.context > 1:
        parts.append(f"context degree {group.context}" + " with ring exchange" * has_ring(group))
    if group.expert > 1:
        parts.append(f"expert degree {group.expert}")
    if isinstance(group.shard, str):
        once = " with one sum per step" * (group.reduce == "step")
        parts.append(f"{group.shard} over {counted(group.data, 'GPU')}{once}")
    return ", ".join(parts)


def places_among(group: Group, among: Among) -> range:
    """The places in the group of the GPUs that one collective joins: the first such set."""
    if among == "tensor":
        return range(group.tensor)
    if among == "context":
        return range(0, group.tensor * group.context, group.tensor)
    if among == "expert":
        stride = group.tensor * group.context
        return range(0, stride * group.expert, stride)
    return range(0, group_size(group), math.prod(degrees_of(group)))
