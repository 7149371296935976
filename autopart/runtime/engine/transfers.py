"""Messages between ranks, transferred in the background."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import distributed

from autopart.runtime.engine.failures import LostPeer
from autopart.schedules.actions import Action

T = TypeVar("T")

Transfer = Callable[[torch.Tensor, int], distributed.Work | None]
"""``distributed.isend`` or ``irecv``."""


class Transfers(NamedTuple):
    """The functions that send tensors from this rank and receive tensors on it."""

    send: Transfer
    receive: Transfer


BETWEEN_RANKS = Transfers(distributed.isend, distributed.irecv)


class Message(NamedTuple):
    """One message; its tensors must stay alive until they have arrived."""

    action: Action
    peer: int
    tensors: tuple[torch.Tensor, ...]
    works: tuple[distributed.Work, ...]

    def wait(self) -> None:
        """Wait until the transfer is complete; raises LostPeer if the peer is gone."""
        for work in self.works:
            with_peer(work.wait, self.peer, str(self.action))


def start(
    transfer: Transfer, tensors: Sequence[torch.Tensor], peer: int, action: Action
) -> Message:
    """Start to send or receive `tensors`; raises LostPeer if the peer is gone."""
    works = [with_peer(partial(transfer, tensor, peer), peer, str(action)) for tensor in tensors]
    return Message(action, peer, tuple(tensors), tuple(work for work in works if work is not None))


def with_peer(communicate: Callable[[], T], peer: int | None, waiting_for: str) -> T:
    """Run `communicate`, which needs another rank; raises LostPeer if that rank is gone.

    All transports raise RuntimeError for a peer that is gone, or late beyond the process group's
    timeout. This function converts it.
    """
    try:
        return communicate()
    except RuntimeError as error:
        raise LostPeer(peer, waiting_for, " ".join(str(error).split())) from error
