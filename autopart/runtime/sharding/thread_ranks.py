"""Groups of ranks that are threads in one process: for the numeric check, and for tests."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from autopart.runtime.sharding.groups import Arrival, TensorGroup

WAIT_SECONDS = 600.0
"""The longest time for which a thread waits for the others."""
T = TypeVar("T")
Given = Sequence[Sequence[torch.Tensor]]
"""The tensors of each rank."""


class ThreadRanks(TensorGroup):
    """Ranks that are threads in one process. `run` starts them."""

    def __init__(self, degree: int) -> None:
        self._degree = degree
        self._barrier = threading.Barrier(degree, timeout=WAIT_SECONDS)
        self._own = threading.local()
        self._given: list[Sequence[torch.Tensor]] = [()] * degree

    def run(self, work: Callable[[int], None]) -> None:
        """Run `work(rank)` on every rank at once. The first rank's error is raised again."""
        errors: dict[int, BaseException] = {}

        def ranked(rank: int) -> None:
            self._own.rank = rank
            try:
                # A backward runs in its caller's thread then, on a GPU too.
                with torch.autograd.set_multithreading_enabled(False):
                    work(rank)
            # Whatever ends a rank must end the others, which wait for it.
            except BaseException as error:
                errors[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=ranked, args=(r,)) for r in range(self._degree)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            causes = [e for e in errors.values() if not isinstance(e, threading.BrokenBarrierError)]
            raise (causes or list(errors.values()))[0]

    def part(self, stride: int, degree: int) -> TensorGroup:
        """Return the part that includes the caller.

        All threads make the same exchanges in the same order, each in its own part.
        """
        return _ThreadPart(self, stride, degree)

    def rank(self) -> int:
        """Return the calling thread's rank."""
        return self._own.rank

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the threads' sum or maximum, added in the order of the ranks."""
        return self.part(1, self._degree).all_reduce(tensor, operation)

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return every thread's tensor."""
        return self.part(1, self._degree).all_gather(tensor)

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the calling thread's part."""
        return self.part(1, self._degree).reduce_scatter(parts)

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for the calling thread from every thread."""
        return self.part(1, self._degree).all_to_all(parts, sizes)

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Hand a tensor on around all threads."""
        return self.part(1, self._degree).shift(tensor, by)

    def exchanged(self, tensors: Sequence[torch.Tensor], read: Callable[[Given], T]) -> T:
        """Give tensors to all threads, and return what `read` makes of those of all."""
        self._given[self.rank()] = tensors
        self._barrier.wait()
        found = read(self._given)
        # Nobody may give anew, or change what it gave, before everybody has read.
        self._barrier.wait()
        return found


class _ThreadPart(TensorGroup):
    """Some of the threads: those that stand `stride` apart."""

    def __init__(self, threads: ThreadRanks, stride: int, degree: int) -> None:
        self._threads = threads
        self._stride = stride
        self._degree = degree

    def part(self, stride: int, degree: int) -> TensorGroup:
        """Return a part of this part."""
        return _ThreadPart(self._threads, self._stride * stride, degree)

    def rank(self) -> int:
        """Return the calling thread's rank in its part."""
        return self._threads.rank() // self._stride % self._degree

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the part's sum or maximum, added in the order of the ranks."""

        def over_ranks(given: Given) -> torch.Tensor:
            stacked = torch.stack([of_rank[0] for of_rank in self._own(given)])
            return stacked.amax(0) if operation == "max" else stacked.sum(0)

        return self._threads.exchanged((tensor,), over_ranks)

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the tensor of every thread of the part."""
        return self._threads.exchanged(
            (tensor,), lambda given: [of_rank[0].clone() for of_rank in self._own(given)]
        )

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the calling thread's part."""
        rank = self.rank()
        return self._threads.exchanged(
            parts, lambda given: torch.stack([of_rank[rank] for of_rank in self._own(given)]).sum(0)
        )

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for the calling thread from every thread of its part."""
        rank = self.rank()
        return self._threads.exchanged(
            parts, lambda given: [of_rank[rank].clone() for of_rank in self._own(given)]
        )

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Hand a tensor on around the part."""
        source = (self.rank() - by) % self._degree
        found = self._threads.exchanged(
            (tensor,), lambda given: self._own(given)[source][0].clone()
        )
        return lambda: found

    def _own(self, given: Given) -> Given:
        first = self._threads.rank() - self.rank() * self._stride
        return [given[first + place * self._stride] for place in range(self._degree)]
