"""The part of each parameter that a rank steps: all of it, or with ZeRO-1 its share.

With ZeRO-1 (Rajbhandari et al., SC 2020) the ranks that hold a parameter share its optimizer state and
master copy out among them. Parameters with equal holders lie one behind the other, in the buckets of
the gradients' sum; rank i of r steps the i-th of r equal parts of each bucket and hands it to the
others. Optimizers that treat each element alone (AdamW, SGD) give equal bits that way.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import distributed, nn

from autopart.runtime.execution.gradient_sum import Shared, buckets

HALF = (torch.bfloat16, torch.float16)


class Piece:
    """Elements `start` to `stop` of a parameter, with their float32 master copy where asked for."""

    def __init__(
        self, parameter: nn.Parameter, start: int, stop: int, *, has_copy: bool = False
    ) -> None:
        self.parameter, self.start, self.stop = parameter, start, stop
        self._is_whole = stop - start == parameter.numel()
        own = parameter if self._is_whole else nn.Parameter(self.of(parameter.detach()))
        self.has_copy = has_copy
        self.master = nn.Parameter(own.detach().float()) if self.has_copy else own
        """What an optimizer steps."""

    def take(self, gradient: torch.Tensor | None) -> None:
        """Give the master its part of the parameter's gradient, and of where the parameter now lies."""
        if gradient is not None:
            part = self.of(gradient if self._is_whole else gradient.contiguous())
            self.master.grad = part.to(self.master.dtype)
        if not self._is_whole and not self.has_copy:
            # Versions of weights move the parameter to fresh memory between steps.
            self.master.data = self.of(self.parameter.detach())

    def give_back(self) -> None:
        """Write the stepped master into the parameter, and clear its gradient."""
        if self.has_copy:
            self.of(self.parameter.detach()).copy_(self.master.detach())
        self.master.grad = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its elements of a tensor that belongs to the whole parameter."""
        return tensor if self._is_whole else tensor.view(-1)[self.start : self.stop]


class _Bucket(NamedTuple):
    """Parameters of one dtype that are shared out together."""

    group: distributed.ProcessGroup
    parameters: tuple[nn.Parameter, ...]
    part: int
    """Elements of each rank; the last one's may end earlier."""


class Shares:
    """Which elements of the shared parameters this rank steps."""

    def __init__(self, shared: Sequence[Shared]) -> None:
        """`shared` are groups of parameters with equal holders, the same on all of these."""
        self._buckets = [
            _Bucket(of.group, tuple(bucket), _part(bucket, of.group))
            for of in shared
            for bucket in buckets([p for p in of.parameters if p.is_contiguous()])
        ]
        self._ranges = {id(p): own for bucket in self._buckets for p, own in _own_ranges(bucket)}

    def pieces(
        self, parameters: Sequence[nn.Parameter], *, has_masters: bool = True
    ) -> list[Piece]:
        """Those of `parameters` that this rank steps; all of a parameter that it does not share. With
        `has_masters` those in 16 bits have a master copy."""
        found = [(p, *self._ranges.get(id(p), (0, p.numel()))) for p in parameters]
        return [
            Piece(p, start, stop, has_copy=has_masters and p.dtype in HALF)
            for p, start, stop in found
            if start < stop
        ]

    def gather(self, tensor_of: Callable[[nn.Parameter], torch.Tensor]) -> None:
        """Make whole the tensors that belong to the shared parameters, each rank giving its elements;
        the holders of each group must all call it."""
        for group, parameters, part in self._buckets:
            tensors = [tensor_of(parameter).detach() for parameter in parameters]
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            whole = flat.new_zeros(part * group.size())
            whole[: flat.numel()] = flat
            mine = whole[part * group.rank() : part * (group.rank() + 1)].clone()
            parts_of_ranks = list(whole.split(part))
            distributed.all_gather(parts_of_ranks, mine, group=group)
            parts = whole[: flat.numel()].split([tensor.numel() for tensor in tensors])
            for tensor, new in zip(tensors, parts, strict=True):
                tensor.copy_(new.view_as(tensor))


def _part(bucket: Sequence[nn.Parameter], group: distributed.ProcessGroup) -> int:
    return -(-sum(parameter.numel() for parameter in bucket) // group.size())


def _own_ranges(bucket: _Bucket) -> list[tuple[nn.Parameter, tuple[int, int]]]:
    """Of each parameter the elements in this rank's part, none where they end before they start."""
    first = bucket.part * bucket.group.rank()
    ends = pairwise(accumulate((p.numel() for p in bucket.parameters), initial=0))
    return [
        (p, (max(0, first - begin), min(end, first + bucket.part) - begin))
        for p, (begin, end) in zip(bucket.parameters, ends, strict=True)
    ]
