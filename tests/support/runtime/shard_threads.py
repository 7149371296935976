"""Processes that share state, as threads of one process."""

import torch

from autopart.runtime.sharding.shard_groups import ShardGroup, UnderWay
from autopart.runtime.sharding.thread_ranks import ThreadRanks


class _Over:
    def wait(self) -> None:
        """It is over already."""


class ThreadPlaces(ShardGroup):
    """The places of a shard group; `ranks.run` starts them."""

    def __init__(self, size: int) -> None:
        self.size, self.ranks = size, ThreadRanks(size)

    def rank(self) -> int:
        """Return the calling thread's place."""
        return self.ranks.rank()

    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Fill `whole` at once."""
        whole.copy_(torch.cat(list(self.ranks.all_gather(own))))
        return _Over()

    def start_scatter(self, own: torch.Tensor, whole: torch.Tensor) -> UnderWay:
        """Write the own part of the sum at once."""
        own.copy_(self.ranks.reduce_scatter(whole.chunk(self.size)))
        return _Over()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace the tensor by the sum."""
        return tensor.copy_(self.ranks.all_reduce(tensor, "sum"))
