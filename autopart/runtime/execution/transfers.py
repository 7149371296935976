"""Tensors on their way to and from other ranks, in the background."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import distributed

from autopart.runtime.execution.faults import LostPeer
from autopart.schedule import Action

T = TypeVar("T")

Transfer = Callable[[torch.Tensor, int], distributed.Work | None]
"""``distributed.isend`` or ``irecv``."""


class Transfers(NamedTuple):
    """What carries tensors from this rank and to it."""

    send: Transfer
    receive: Transfer


BETWEEN_RANKS = Transfers(distributed.isend, distributed.irecv)


class Message(NamedTuple):
    """The tensors of one message; they must live until they have arrived."""

    action: Action
    peer: int
    tensors: tuple[torch.Tensor, ...]
    works: tuple[distributed.Work, ...]

    def wait(self) -> None:
        """Raises LostPeer where the peer is gone."""
        for work in self.works:
            carried(work.wait, self.peer, str(self.action))


def start(
    transfer: Transfer, tensors: Sequence[torch.Tensor], peer: int, action: Action
) -> Message:
    """Begin to send or receive; raises LostPeer where the peer is gone."""
    works = [carried(partial(transfer, tensor, peer), peer, str(action)) for tensor in tensors]
    return Message(action, peer, tuple(tensors), tuple(work for work in works if work is not None))


def carried(deed: Callable[[], T], peer: int | None, waiting_for: str) -> T:
    """Do what needs another rank. Every transport reports a peer that is gone, or that is late
    beyond the process group's timeout, as a RuntimeError, which becomes LostPeer."""
    try:
        return deed()
    except RuntimeError as error:
        raise LostPeer(peer, waiting_for, " ".join(str(error).split())) from error
