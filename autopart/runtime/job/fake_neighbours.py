"""Fake neighbours and weights, with which one rank of a pipeline runs alone.

Received tensors have the right shapes and random values, drawn anew for each message. Tensors that
are not floating point, such as ids and masks, are zero. Sent tensors are dropped. So the rank has
the memory and the work that its order implies. Operations whose cost depends on values, such as a
router's choice of experts, may take another time.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import fx, nn

from autopart.runtime.engine.transfers import Transfers
from autopart.schedules.lending import partner_stage

_DEVIATION = 1e-2
"""Standard deviation of received values."""


def _arrive(tensor: torch.Tensor, other_rank: int) -> None:
    if tensor.is_floating_point():
        tensor.normal_(std=_DEVIATION)
    else:
        tensor.zero_()


def _leave(tensor: torch.Tensor, other_rank: int) -> None:
    pass


NEIGHBOURS = Transfers(send=_leave, receive=_arrive)


class FakePartners:
    """Stand for the ranks of a pipeline that keep a rank's stash, and for those that lend theirs.

    Stash that is sent is dropped, and comes back as zeros. A rank that keeps stash is told the sizes
    that its lender has sent, so the lender must run first.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, list[list[int]]] = {}
        """By the lender's stage the numbers ahead of the bytes, in the order of a step."""

    def of_stages(self, stages: Sequence[int], num_stages: int) -> Transfers:
        """The partner of a rank with these stages, in a pipeline of so many."""
        if not stages:
            return NEIGHBOURS
        own, other = stages[0], partner_stage(stages[0], num_stages)
        sent = self._sizes.setdefault(own, [])
        told = itertools.cycle(self._sizes.get(other, ()))

        def send(tensor: torch.Tensor, other_rank: int) -> None:
            # Numbers are no bytes.
            if tensor.dtype == torch.int64:
                sent.append(tensor.tolist())

        def receive(tensor: torch.Tensor, other_rank: int) -> None:
            if tensor.dtype == torch.int64:
                tensor.copy_(torch.tensor(next(told)))
            else:
                tensor.zero_()

        return Transfers(send, receive)


def give_weights(modules: Sequence[fx.GraphModule], device: torch.device) -> None:
    """Replace all meta tensors in the stages of a rank by tensors on `device`.

    Matrices are random; their deviation keeps the size of the values that they multiply. Vectors
    are ones, integers are zeros. Tied tensors stay one tensor, within a stage and over several.
    """
    made: dict[int, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            value = _drawn(torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
        return made[id(tensor)]

    for part in (part for module in modules for part in module.modules()):
        for name, tensor in (
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        ):
            if tensor.is_meta:
                setattr(part, name, real(tensor))


def _drawn(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.zero_()
    if tensor.ndim < 2:
        return tensor.fill_(1.0)
    return tensor.normal_(std=tensor[0].numel() ** -0.5)
