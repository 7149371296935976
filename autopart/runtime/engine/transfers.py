"""Messages between ranks, transferred in the background."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import distributed

from autopart.runtime.engine.failures import LostRank
from autopart.schedules.actions import Action

T = TypeVar("T")

Transfer = Callable[[torch.Tensor, int], distributed.Work | None]
"""``distributed.isend`` or ``irecv``."""


class Transport(Protocol):
    """Sends the results of actions from this rank, and receives those of others."""

    def start_send(
        self, tensors: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> "Message":
        """Start to send what `action` made; raises LostRank if the other rank is gone."""
        ...

    def start_receive(
        self, buffers: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> "Message":
        """Start to receive what `action` needs into `buffers`; raises LostRank if the other rank is gone."""
        ...


class Transfers(NamedTuple):
    """The functions that send tensors from this rank and receive tensors on it."""

    send: Transfer
    receive: Transfer

    def start_send(
        self, tensors: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> "Message":
        """See `Transport`."""
        return start(self.send, tensors, other_rank, action)

    def start_receive(
        self, buffers: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> "Message":
        """See `Transport`."""
        return start(self.receive, buffers, other_rank, action)


BETWEEN_RANKS = Transfers(distributed.isend, distributed.irecv)


class TransferUnderWay(Protocol):
    """A transfer under way."""

    def wait(self) -> object:
        """Wait until it is complete."""
        ...


class Message(NamedTuple):
    """One message; its tensors must stay alive until they have arrived."""

    action: Action
    other_rank: int
    tensors: tuple[torch.Tensor, ...]
    works: tuple[TransferUnderWay, ...]

    def wait(self) -> None:
        """Wait until the transfer is complete; raises LostRank if the other rank is gone."""
        for work in self.works:
            with_other_rank(work.wait, self.other_rank, str(self.action))


def start(
    transfer: Transfer, tensors: Sequence[torch.Tensor], other_rank: int, action: Action
) -> Message:
    """Start to send or receive `tensors`; raises LostRank if the other rank is gone."""
    works = [
        with_other_rank(partial(transfer, tensor, other_rank), other_rank, str(action))
        for tensor in tensors
    ]
    return Message(
        action, other_rank, tuple(tensors), tuple(work for work in works if work is not None)
    )


def with_other_rank(communicate: Callable[[], T], other_rank: int | None, waiting_for: str) -> T:
    """Run `communicate`, which needs another rank; raises LostRank if it is gone.

    All transports raise RuntimeError for a rank that is gone, or late beyond the process group's
    timeout. This function converts it.
    """
    try:
        return communicate()
    except RuntimeError as error:
        raise LostRank(other_rank, waiting_for, " ".join(str(error).split())) from error
