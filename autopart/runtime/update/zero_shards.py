"""ZeRO shards: the elements in each parameter that one rank's optimizer steps.

Without ZeRO-1 a shard is a whole parameter. With ZeRO-1 (Rajbhandari et al., SC 2020) all ranks
that hold a parameter divide its optimizer state and master copy among them. Parameters with equal
holders are laid end to end in the buckets that also sum gradients. Rank i among r steps the i-th of
r equal parts in each bucket, then gathers the other parts. AdamW and SGD update each element
independently, so the result is equal bit for bit.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import distributed, nn

from autopart.runtime.update.gradient_sum import SharedParameters, buckets

HALF = (torch.bfloat16, torch.float16)


class Range(NamedTuple):
    """A parameter's elements `start` to `stop`."""

    parameter: nn.Parameter
    start: int
    stop: int


class Shard:
    """A parameter's elements `start` to `stop`, optionally with their float32 master copy."""

    def __init__(
        self, parameter: nn.Parameter, start: int, stop: int, *, has_copy: bool = False
    ) -> None:
        self.parameter, self.start, self.stop = parameter, start, stop
        self._is_whole = stop - start == parameter.numel()
        own = parameter if self._is_whole else nn.Parameter(self.elements_of(parameter.detach()))
        self.has_copy = has_copy
        self.master = nn.Parameter(own.detach().float()) if self.has_copy else own
        """Parameter that the optimizer steps: the master copy, a view, or the parameter itself."""

    def load_gradient(self, gradient: torch.Tensor | None) -> None:
        """Give the master its elements of the parameter's gradient."""
        if gradient is not None:
            own = self.elements_of(gradient if self._is_whole else gradient.contiguous())
            self.master.grad = own.to(self.master.dtype)
        if not self._is_whole and not self.has_copy:
            # Weight versions move the parameter to new memory between steps, so the view is
            # renewed.
            self.master.data = self.elements_of(self.parameter.detach())

    def write_back(self) -> None:
        """Write the stepped master into the parameter, then clear the master's gradient."""
        if self.has_copy:
            self.elements_of(self.parameter.detach()).copy_(self.master.detach())
        self.master.grad = None

    def elements_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This shard's elements, as a view into a tensor with the parameter's shape."""
        return tensor if self._is_whole else tensor.view(-1)[self.start : self.stop]


class _Bucket(NamedTuple):
    """Parameters with one dtype and equal holders, divided among these holders together."""

    group: distributed.ProcessGroup
    parameters: tuple[nn.Parameter, ...]
    part: int
    """Elements per rank; the last rank may have fewer."""


class ZeroSharding:
    """Decides which elements in shared parameters this rank steps."""

    def __init__(self, shared: Sequence[SharedParameters]) -> None:
        """`shared` groups parameters by their holders, equally on all holders."""
        self._buckets = [
            _Bucket(of.group, tuple(bucket), _part(bucket, of.group))
            for of in shared
            for bucket in buckets([p for p in of.parameters if p.is_contiguous()])
        ]
        self._ranges = {id(p): own for bucket in self._buckets for p, own in _own_ranges(bucket)}

    def own_ranges(self, parameters: Sequence[nn.Parameter]) -> list[Range]:
        """This rank's elements of each parameter: all of one that is not shared.

        Parameters without elements on this rank are left out.
        """
        ranges = [Range(p, *self._ranges.get(id(p), (0, p.numel()))) for p in parameters]
        return [own for own in ranges if own.start < own.stop]

    def divides(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter's holders divide its elements among them."""
        return id(parameter) in self._ranges

    @torch.no_grad()
    def scatter_sums(self, used: Collection[int]) -> None:
        """Replace this rank's elements of each divided gradient by their sum over the holders.

        `used` has the ids of parameters with a gradient on any holder; a holder without one adds
        zeros. Other elements stay as they are. Collective: all holders of each group must call this.
        """
        for group, parameters, part in self._buckets:
            if not any(id(parameter) in used for parameter in parameters):
                continue
            # Step 1: lay the gradients end to end, padded to equal parts, and sum this rank's part.
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            whole = parameters[0].new_zeros(part * group.size())
            torch.cat(
                [gradient.reshape(-1) for gradient in gradients],
                out=whole[: sum(gradient.numel() for gradient in gradients)],
            )
            first = part * group.rank()
            whole[first : first + part] = _sum_of_part(whole, group)
            # Step 2: copy it back.
            begin = 0
            for parameter, gradient in zip(parameters, gradients, strict=True):
                end = begin + gradient.numel()
                if id(parameter) in used:
                    gradient.copy_(whole[begin:end].view_as(gradient))
                    parameter.grad = gradient
                begin = end

    def gather(self, tensor_of: Callable[[nn.Parameter], torch.Tensor]) -> None:
        """Complete one tensor per shared parameter with the elements from all its holders.

        `tensor_of` returns the tensor for a parameter, in the parameter's shape. Collective: all
        holders of each group must call this.
        """
        for group, parameters, part in self._buckets:
            # Step 1: lay the tensors end to end, padded to equal parts.
            tensors = [tensor_of(parameter).detach() for parameter in parameters]
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            whole = flat.new_zeros(part * group.size())
            whole[: flat.numel()] = flat
            # Step 2: exchange parts; `whole` receives every rank's part.
            mine = whole[part * group.rank() : part * (group.rank() + 1)].clone()
            distributed.all_gather(list(whole.split(part)), mine, group=group)
            # Step 3: copy the elements back into the tensors.
            elements = whole[: flat.numel()].split([tensor.numel() for tensor in tensors])
            for tensor, new in zip(tensors, elements, strict=True):
                tensor.copy_(new.view_as(tensor))


def _sum_of_part(whole: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """The sum of rank i's equal part of `whole` over all ranks, on rank i: a reduce-scatter."""
    size = group.size()
    if whole.device.type == "cpu":
        # gloo's own reduce-scatter is an all-reduce (ProcessGroupGloo.cpp). An exchange of parts
        # moves as few bytes as a ring.
        received = torch.empty_like(whole)
        distributed.all_to_all_single(received, whole, group=group)
        return received.view(size, -1).sum(0)
    own = whole.new_empty(whole.numel() // size)
    distributed.reduce_scatter(own, list(whole.chunk(size)), group=group)
    return own


def _part(bucket: Sequence[nn.Parameter], group: distributed.ProcessGroup) -> int:
    return -(-sum(parameter.numel() for parameter in bucket) // group.size())


def _own_ranges(bucket: _Bucket) -> list[tuple[nn.Parameter, tuple[int, int]]]:
    """For each parameter, the range (start, stop) that lies in this rank's part.

    The range is empty if stop is not larger than start.
    """
    first = bucket.part * bucket.group.rank()
    ends = pairwise(accumulate((p.numel() for p in bucket.parameters), initial=0))
    return [
        (p, (max(0, first - begin), min(end, first + bucket.part) - begin))
        for p, (begin, end) in zip(bucket.parameters, ends, strict=True)
    ]
