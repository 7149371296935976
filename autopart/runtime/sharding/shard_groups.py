"""Groups of d processes that share a stage's state, and the collectives that join and split it.

Each process has one of d equal parts of a flat tensor. Unlike the collectives of a tensor group these write
into given memory, so no copy of the weights or gradients exists beside them.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import torch
from torch import distributed
from torch._C._distributed_c10d import AllgatherOptions, ReduceScatterOptions

from autopart.runtime.sharding.registry import Registry

T = TypeVar("T")


def real_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return complex numbers as pairs of real ones, in the same memory: no backend sends complex ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class UnderWay(Protocol):
    """A collective that runs in the background."""

    def wait(self) -> object:
        """Wait until it is complete."""
        ...


class ShardGroup(ABC):
    """The d processes that share the state of the same layers."""

    size: int
    """How many processes there are."""

    @abstractmethod
    def rank(self) -> int:
        """Return this process's place in the group, from 0."""

    @abstractmethod
    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Start to fill `whole` with the parts of all processes, in the order of their places."""

    @abstractmethod
    def start_scatter(self, own: torch.Tensor, whole: torch.Tensor) -> UnderWay:
        """Start to write the sum of this process's part of `whole` over all processes into `own`."""

    @abstractmethod
    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace the tensor by its sum over all processes, and return it."""


class _Done:
    def wait(self) -> None:
        """Return at once."""


class LonePlace(ShardGroup):
    """Place 0 of d without the others: collectives move nothing. Values are wrong, shapes and work are right."""

    def __init__(self, size: int) -> None:
        self.size = size

    def rank(self) -> int:
        """Return 0."""
        return 0

    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Write the own part to each place, so that all values are of a weight's size."""
        for part in whole.view(self.size, -1)[1:]:
            part.copy_(own)
        whole[: own.numel()].copy_(own)
        return _Done()

    def start_scatter(self, own: torch.Tensor, whole: torch.Tensor) -> UnderWay:
        """Write the own part."""
        own.copy_(whole[: own.numel()])
        return _Done()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as it is."""
        return tensor


def _at_once(call: Callable[[], T]) -> T:
    return call()


class ProcessShards(ShardGroup):
    """The processes of a process group."""

    def __init__(
        self,
        group: distributed.ProcessGroup,
        call: Callable[[Callable[[], object]], object] = _at_once,
    ) -> None:
        """`call` runs each exchange, and may raise another error where it fails."""
        self._group, self._call = group, call
        self.size = group.size()

    def rank(self) -> int:
        """Return this process's rank in the group."""
        return self._group.rank()

    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Start an all-gather."""
        given = real_numbers(whole), real_numbers(own)
        return self._started(lambda: self._group._allgather_base(*given, AllgatherOptions()))

    def start_scatter(self, own: torch.Tensor, whole: torch.Tensor) -> UnderWay:
        """Start a reduce-scatter."""
        options = ReduceScatterOptions()
        options.reduceOp = distributed.ReduceOp(distributed.ReduceOp.SUM)
        given = real_numbers(own), real_numbers(whole)
        return self._started(lambda: self._group._reduce_scatter_base(*given, options))

    def _started(self, start: Callable[[], object]) -> UnderWay:
        return _Guarded(cast(UnderWay, self._call(start)), self._call)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Run an all-reduce."""
        self._call(lambda: self._group.allreduce([real_numbers(tensor)]).wait())
        return tensor


class _Guarded:
    def __init__(self, work: UnderWay, call: Callable[[Callable[[], object]], object]) -> None:
        self._work, self._call = work, call

    def wait(self) -> None:
        """Wait until it is complete."""
        self._call(self._work.wait)


_REGISTRY = Registry[ShardGroup]()
shard_group_named = _REGISTRY.named
"""The registered group with a name. Raises RunError where there is none."""
shards_registered = _REGISTRY.registered
"""A block in which graphs that name `name` exchange through `group`."""
