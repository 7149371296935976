"""Shard groups of one process, which move nothing."""

import torch

from autopart.runtime.sharding.shard_groups import LonePlace, UnderWay


class RecordedGroup(LonePlace):
    """Place 0 of two. It notes its collectives."""

    def __init__(self) -> None:
        super().__init__(2)
        self.calls: list[tuple[str, int]] = []
        """Each collective's kind, and the elements of a process's part."""

    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Note a gather."""
        self.calls.append(("gather", own.numel()))
        return super().start_gather(whole, own)

    def start_scatter(self, own: torch.Tensor, whole: torch.Tensor) -> UnderWay:
        """Note a scatter."""
        self.calls.append(("scatter", own.numel()))
        return super().start_scatter(own, whole)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a sum."""
        self.calls.append(("sum", tensor.numel()))
        return super().sum(tensor)


class LateGroup(LonePlace):
    """A group of one, whose weights arrive where they are waited for. Before they are NaN."""

    def __init__(self) -> None:
        super().__init__(1)

    def start_gather(self, whole: torch.Tensor, own: torch.Tensor) -> UnderWay:
        """Start a gather."""
        whole.fill_(float("nan"))
        return _Arrival(whole, own)


class _Arrival:
    def __init__(self, whole: torch.Tensor, own: torch.Tensor) -> None:
        self._whole, self._own = whole, own

    def wait(self) -> None:
        """Have the weights."""
        self._whole.copy_(self._own)
