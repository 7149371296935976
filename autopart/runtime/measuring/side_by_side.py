"""A forward and a backward run together: on a GPU on two streams, on a CPU in turn.

Autograd runs each backward on the stream of its forward. So the forward in a pair takes the stream
that the backward does not use. When the pair ends, the rank's own stream waits for both.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class SideBySide(Protocol):
    """Runs a forward and a backward together."""

    def run(
        self,
        forward: Callable[[], T],
        backward: Callable[[], Iterable[torch.Tensor | None]],
        made: Hashable,
        used: Hashable,
    ) -> T:
        """Run both and return what the forward returns.

        `made` names the forward's graph, and `used` the one that the backward takes. `backward`
        returns the tensors that both have made and that later work reads.
        """
        ...


class InTurn:
    """A CPU's cores are busy with either alone, so they run one after the other."""

    def run(
        self,
        forward: Callable[[], T],
        backward: Callable[[], Iterable[torch.Tensor | None]],
        made: Hashable,
        used: Hashable,
    ) -> T:
        result = forward()
        backward()
        return result


class OnTwoStreams:
    """A GPU runs both at once, as far as they leave each other room."""

    def __init__(self, device: torch.device) -> None:
        self._other = torch.cuda.Stream(device)
        self._on_other: set[Hashable] = set()
        """Graphs whose forward ran on the other stream."""

    def run(
        self,
        forward: Callable[[], T],
        backward: Callable[[], Iterable[torch.Tensor | None]],
        made: Hashable,
        used: Hashable,
    ) -> T:
        own, other = torch.cuda.current_stream(), self._other
        # Step 1: the other stream begins behind all work so far.
        other.wait_stream(own)
        if used in self._on_other:
            self._on_other.discard(used)
            of_forward, of_backward = own, other
        else:
            self._on_other.add(made)
            of_forward, of_backward = other, own
        # Step 2: start both. Neither waits for the other.
        with torch.cuda.stream(of_forward):
            result = forward()
        with torch.cuda.stream(of_backward):
            tensors = list(backward())
        # Step 3: later work follows both. What it reads is not given to other tensors before.
        own.wait_stream(other)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(own)
        return result


def side_by_side(device: torch.device) -> SideBySide:
    """The way in which `device` runs an overlapped pair."""
    return OnTwoStreams(device) if device.type == "cuda" else InTurn()
