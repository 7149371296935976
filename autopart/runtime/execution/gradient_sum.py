"""Gradients of one parameter on several ranks become their sum on each of them.

A parameter stands on every rank of every stage that reads it: on the replicas of its stage, and,
where it is tied, on other stages too. Each rank has the gradients of its own microbatches and its
own uses, so the sum over all holders is the gradient of the whole batch, and equal bits on all of
them keep the copies equal after the optimizer's step.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import distributed

BUCKET_BYTES = 64 << 20
"""Gradients are copied into flat buckets of this size (one gradient may be larger)."""

Named = Mapping[str, torch.nn.Parameter]


class Holders(NamedTuple):
    """Parameters that the same ranks hold."""

    ranks: tuple[int, ...]
    names: tuple[str, ...]


def holders_of(
    stage_parameters: Sequence[Sequence[str]], stage_ranks: Sequence[Sequence[int]]
) -> tuple[Holders, ...]:
    """Who holds what, of all parameters that more than one rank holds; the same on every rank."""
    ranks: dict[str, set[int]] = {}
    for names, on in zip(stage_parameters, stage_ranks, strict=True):
        for name in names:
            ranks.setdefault(name, set()).update(on)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(ranks):
        if len(ranks[name]) > 1:
            groups.setdefault(tuple(sorted(ranks[name])), []).append(name)
    return tuple(Holders(on, tuple(groups[on])) for on in sorted(groups))


class GradientSum:
    """Sums the gradients of this rank's shared parameters over all that hold them."""

    def __init__(self, holders: Sequence[Holders], parameters: Named, rank: int) -> None:
        """Every rank of the world must call this, with equal `holders`: it makes process groups."""
        self.shared: list[Shared] = []
        """The parameters of this rank that others hold too, by their holders."""
        for held in holders:
            group = distributed.new_group(list(held.ranks))
            if rank in held.ranks:
                trained = [parameters[n] for n in held.names if parameters[n].requires_grad]
                self.shared.append(Shared(group, trained))

    def run(self) -> None:
        """Replace each shared gradient by its sum; the holders of each group must all call it."""
        for shared in self.shared:
            shared.agree_on_used()
            for bucket in buckets(shared.used):
                _sum_bucket(bucket, shared.group)


class Shared:
    """Parameters with equal holders, and the group of these."""

    def __init__(self, group: object, parameters: list[torch.nn.Parameter]) -> None:
        assert isinstance(group, distributed.ProcessGroup)
        self.group = group
        self.parameters = parameters
        self.used: list[torch.nn.Parameter] = []
        self._agreed = False

    def agree_on_used(self) -> None:
        """Find, once, the parameters that have a gradient on any holder. The graph is fixed, so
        they stay the same; one without gradients anywhere must keep None, since an optimizer would
        decay its weight if it saw a zero."""
        if self._agreed or not self.parameters:
            return
        first = self.parameters[0]
        has = torch.tensor([p.grad is not None for p in self.parameters], device=first.device)
        count = has.to(torch.int32)
        distributed.all_reduce(count, group=self.group)
        self.used = [p for p, n in zip(self.parameters, count.tolist(), strict=True) if n]
        self._agreed = True


def buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one dtype, up to `BUCKET_BYTES` together, in an order that all holders share."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in sorted(parameters, key=lambda p: str(p.dtype)):
        full = size + parameter.nbytes > BUCKET_BYTES
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def _sum_bucket(bucket: Sequence[torch.nn.Parameter], group: distributed.ProcessGroup) -> None:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for parameter, gradient, part in zip(bucket, gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
        parameter.grad = gradient
