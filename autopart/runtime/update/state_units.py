"""State units: parameters of a layer that are laid end to end, one equal part on each process of a group.

    whole      | a a a a a a | b b | c c c c c | 0 |        d = 2, padded to equal parts
    parts      | place 0             | place 1     |

With zero3 the whole exists only while an operation needs it: its storage has no memory otherwise. Parameters
are views of it, so tensors that autograd saves hold a view, and see the weights again once they are gathered.
With zero2 the whole stays. Gradients are views of a flat tensor as well, and autograd adds to it in place.
Then one reduce-scatter leaves each process its part of the sum.

The optimizer steps *part parameters*: for each parameter the elements of it in this process's part, perhaps none.
"""

from collections.abc import Collection, Mapping
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import nn

from autopart.runtime.measuring.live_bytes import RESIZE
from autopart.runtime.sharding.shard_groups import ShardGroup, UnderWay


class _Range(NamedTuple):
    start: int
    stop: int


class _Closing(NamedTuple):
    """Gradients on their way."""

    work: UnderWay
    summed: torch.Tensor
    gradient: torch.Tensor
    """The flat gradient, which must stay until the sum is there."""
    used: list[str]
    """The parameters that have a gradient."""


class StateUnit:
    """Parameters with one dtype that are gathered and summed together."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        group: ShardGroup,
        *,
        keeps_weights: bool,
        use_varies: bool = False,
    ) -> None:
        """Takes over the memory of `parameters`, in their order. With `keeps_weights` they stay whole.

        With `use_varies`, a step may use a parameter on one process only. Then all parts get gradients, and
        `settle` takes those away that no process made.
        """
        self.parameters, self._group = dict(parameters), group
        self._keeps, self._use_varies = keeps_weights, use_varies
        self.used: set[str] = set()
        """Parameters that this process used since the last `settle`."""
        self.is_settled = True
        """Whether no gradients were summed since the last `settle`."""
        first = next(iter(parameters.values()))
        ends = accumulate((p.numel() for p in parameters.values()), initial=0)
        self._ranges = [_Range(*pair) for pair in pairwise(ends)]
        self._part = -(-self._ranges[-1].stop // group.size)
        self.is_trained = first.requires_grad
        self._whole = first.detach().new_zeros(self._part * group.size)
        for parameter, (start, stop) in zip(parameters.values(), self._ranges, strict=True):
            # `data` has a version counter of its own: a gather is no change that autograd must hear of.
            view = self._whole.data[start:stop].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
        own = self._whole.narrow(0, self._part * group.rank(), self._part)
        self.own = own if keeps_weights else own.clone()
        """This process's part of the weights."""
        self.parts: dict[str, nn.Parameter] = {
            name: nn.Parameter(self._own_elements(self.own, at), requires_grad=self.is_trained)
            for name, at in zip(parameters, self._ranges, strict=True)
        }
        """The part parameters, by the names of their parameters."""
        self._gradient: torch.Tensor | None = None
        self._versions: dict[str, int] = {}
        self._closing: _Closing | None = None
        self._under_way: UnderWay | None = None
        self._is_here = True
        self.release()

    @property
    def is_open(self) -> bool:
        """Whether backwards add to this unit's flat gradient now."""
        return self._gradient is not None

    @property
    def has_gradients(self) -> bool:
        """Whether a backward has made gradients that are not scattered yet."""
        return any(p.grad is not None for p in self.parameters.values())

    def start_gather(self) -> None:
        """Start to gather the weights, unless they are here or on their way."""
        if self._is_here:
            return
        RESIZE(self._whole, self._whole.numel() * self._whole.element_size())
        self._under_way, self._is_here = self._group.start_gather(self._whole, self.own), True

    def gather(self) -> None:
        """Have the weights here."""
        self.start_gather()
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def release(self) -> None:
        """Free the whole weights, where the unit does not keep them."""
        if self._keeps or not self._is_here:
            return
        self.gather()
        RESIZE(self._whole, 0)
        self._is_here = False

    @torch.no_grad()
    def open(self) -> None:
        """Let backwards add to one flat gradient. Gradients that are there already count."""
        if self._gradient is not None or not self.is_trained:
            return
        self._gradient = self._whole.new_zeros(self._whole.numel())
        for (name, parameter), (start, stop) in zip(
            self.parameters.items(), self._ranges, strict=True
        ):
            # Each view has a version counter of its own, which tells whether a gradient was made.
            view = self._gradient.data[start:stop].view(parameter.shape)
            self._versions[name] = view._version
            if parameter.grad is not None:
                view.copy_(parameter.grad)
            parameter.grad = view

    @torch.no_grad()
    def start_close(self) -> None:
        """Start to scatter the sum of the flat gradients of all processes; does nothing where none is open.

        Collective over the group. Backwards may open the unit again meanwhile.
        """
        if self._gradient is None:
            return
        assert self._closing is None
        used: list[str] = []
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            # Without a gradient an optimizer with weight decay must leave a parameter alone.
            if gradient is not None and gradient._version != self._versions[name]:
                used.append(name)
        summed = self._gradient.new_empty(self._part)
        work = self._group.start_scatter(summed, self._gradient)
        self._closing = _Closing(work, summed, self._gradient, used)
        self._gradient = None

    @torch.no_grad()
    def close(self) -> list[nn.Parameter]:
        """Add this process's part of the sum to the part parameters' gradients; return those with one."""
        if self._closing is None:
            self.start_close()
        if self._closing is None:
            return []
        work, summed, gradient, used = self._closing
        work.wait()
        # The transport's own thread may keep the tensor for a moment more, but not its memory.
        RESIZE(gradient, 0)
        self._closing, made = None, list[nn.Parameter]()
        self.used.update(used)
        self.is_settled = not self._use_varies
        for name, at in zip(self.parameters, self._ranges, strict=True):
            if name in used or self._use_varies:
                part, own = self.parts[name], self._own_elements(summed, at)
                part.grad = own if part.grad is None else part.grad.add_(own)
                made.append(part)
        return made

    def settle(self, used: Collection[str]) -> None:
        """Take the gradients away from parts of parameters that no process used."""
        for name, part in self.parts.items():
            if name not in used:
                part.grad = None
        self.used, self.is_settled = set(), True

    def written(self) -> None:
        """Gather the weights that the optimizers of all processes stepped, where they stay. Collective."""
        if self._keeps:
            self._group.start_gather(self._whole, self.own).wait()

    def whole_of(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """A whole parameter, or what has an element for each of its own, from all parts. Collective."""
        at = self._ranges[list(self.parameters).index(name)]
        whole = part.new_zeros(at.stop - at.start)
        start = self._own_start(at) - at.start
        whole[start : start + part.numel()] = part
        return self._group.sum(whole).view(self.parameters[name].shape)

    def own_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """The elements of a whole parameter that are in this process's part."""
        at = self._ranges[list(self.parameters).index(name)]
        start = self._own_start(at) - at.start
        return whole.reshape(-1)[start : start + self.parts[name].numel()]

    def _own_start(self, at: _Range) -> int:
        """The first element of a range that is in this process's part, or else a place inside the range."""
        return min(max(at.start, self._part * self._group.rank()), at.stop)

    def _own_elements(self, own: torch.Tensor, at: _Range) -> torch.Tensor:
        first = self._part * self._group.rank()
        start = self._own_start(at)
        stop = max(start, min(at.stop, first + self._part))
        return own[start - first : stop - first] if stop > start else own[:0]
