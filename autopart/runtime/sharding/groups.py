"""Groups of t ranks that share a layer, and the exchange of tensors inside them.

A local graph names its group. The object that is registered under the name when the graph runs
decides what happens: real ranks exchange, threads in one process exchange, or nobody does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import distributed

from autopart.runtime.sharding.registry import Registry
from autopart.runtime.sharding.shard_groups import ShardGroup, real_numbers

Arrival = Callable[[], torch.Tensor]
"""Waits for a tensor that is on its way, and returns it."""


class TensorGroup(ABC):
    """Ranks that share the same layers: by tensors, by positions, or by both."""

    is_alone: bool = False
    """Whether no other rank exists: collectives then move nothing."""
    load: float = 1.0
    """Entries that a rank alone gets for its experts, for each that it sends."""

    @property
    def of_layers(self) -> "TensorGroup":
        """The part of a rank group that has the caller's samples, and shares layers with it; by default the whole."""
        return self

    @property
    def of_samples(self) -> ShardGroup | None:
        """The part of a rank group that shares samples and state with the caller; None without one."""
        return None

    @abstractmethod
    def rank(self) -> int:
        """Return the caller's rank in the group, from 0."""

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the ranks' "sum" or "max" as a new tensor with the shape of `tensor`."""

    @abstractmethod
    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return every rank's tensor, in the order of the ranks."""

    @abstractmethod
    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum over the ranks of the part that belongs to the caller."""

    @abstractmethod
    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for the caller from every rank; `sizes` has the rows of each. One part goes to each rank."""

    @abstractmethod
    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Start to send a tensor to the rank `by` places on in the ring, and to receive that of the rank `by` before.

        The tensor may not change before the other one has arrived.
        """

    @abstractmethod
    def part(self, stride: int, degree: int) -> "TensorGroup":
        """Return the group of those `degree` ranks that stand `stride` apart and include the caller."""


class LoneRank(TensorGroup):
    """Rank 0 of t without the others, for a profile: collectives take no time and no memory.

    Values are wrong, shapes and work are right.
    """

    is_alone = True

    def __init__(self, degree: int, load: float = 1.0) -> None:
        self._degree, self.load = degree, load

    def rank(self) -> int:
        """Return 0."""
        return 0

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the tensor's own numbers."""
        return tensor.clone()

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the tensor t times."""
        return [tensor] * self._degree

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the first part."""
        return parts[0].clone()

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the parts as they are."""
        return parts

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Return a copy of the tensor itself."""
        own = tensor.clone()
        return lambda: own

    def part(self, stride: int, degree: int) -> TensorGroup:
        """Return rank 0 of `degree`."""
        return LoneRank(degree)


class ProcessRanks(TensorGroup):
    """The ranks of a process group: one process each.

    The group's own methods are called: torch's functions raise other errors for a group that is not theirs.
    """

    def __init__(
        self,
        group: distributed.ProcessGroup,
        parts: Mapping[tuple[int, int], TensorGroup] | None = None,
    ) -> None:
        """`parts` has the groups that `part` returns, by stride and degree, besides the whole one."""
        self._group = group
        self._parts = {} if parts is None else dict(parts)

    def part(self, stride: int, degree: int) -> TensorGroup:
        """Return the part that was made with the group."""
        return self if degree == self._group.size() else self._parts[stride, degree]

    def rank(self) -> int:
        """Return this process's rank in the group."""
        return self._group.rank()

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the ranks' sum or maximum."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        how = distributed.ReduceOp.MAX if operation == "max" else distributed.ReduceOp.SUM
        options = distributed.AllreduceOptions()
        options.reduceOp = distributed.ReduceOp(how)
        self._group.allreduce([real_numbers(result)], options).wait()
        return result

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return every rank's tensor."""
        own = tensor.contiguous()
        found = [torch.empty_like(own) for _ in range(self._group.size())]
        self._group.allgather([[*map(real_numbers, found)]], [real_numbers(own)]).wait()
        return found

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the caller's part."""
        given = [part.contiguous() for part in parts]
        result = torch.empty_like(given[0])
        self._group.reduce_scatter([real_numbers(result)], [[*map(real_numbers, given)]]).wait()
        return result

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for this process from every rank."""
        given = torch.cat([part.contiguous() for part in parts])
        found = given.new_empty(sum(sizes), *given.shape[1:])
        own = [len(part) for part in parts]
        options = distributed.AllToAllOptions()
        real = real_numbers(found), real_numbers(given)
        self._group.alltoall_base(*real, list(sizes), own, options).wait()
        return found.split(list(sizes))

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Send and receive in one call, in which no rank waits for another's receive before its own."""
        size, rank = self._group.size(), self._group.rank()
        given = tensor.contiguous()
        found = torch.empty_like(given)
        there, here = real_numbers(found).view(-1), real_numbers(given).view(-1)

        def only(other: int) -> list[int]:
            return [here.numel() if place == other % size else 0 for place in range(size)]

        options = distributed.AllToAllOptions()
        work = self._group.alltoall_base(there, here, only(rank - by), only(rank + by), options)

        def arrived() -> torch.Tensor:
            work.wait()
            return found

        return arrived


_REGISTRY = Registry[TensorGroup]()
group_named = _REGISTRY.named
"""The registered group with a name. Raises RunError where there is none."""
registered = _REGISTRY.registered
"""A block in which local graphs that name `name` exchange through `group`."""
