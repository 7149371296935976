"""Gradient sync: each shared parameter gets the sum of its gradients over all ranks that hold it.

Each rank whose stage reads a parameter holds a copy. So a parameter is shared if its stage has
replicas, or if it is tied across stages. Each rank computes gradients from its own microbatches and
its own uses. The sum over all holders is therefore the gradient for the whole batch. It is equal
bit for bit on all holders, so the copies stay equal after the optimizer's step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import distributed

BUCKET_BYTES = 64 << 20
"""Size of the flat buckets that gradients are copied into; a single gradient may be larger."""

Made = Callable[[torch.nn.Parameter], None]
"""Called when a part of a parameter's gradient was added."""

NamedParameters = Mapping[str, torch.nn.Parameter]


class Holders(NamedTuple):
    """Parameters with equal holders, and these holders."""

    ranks: tuple[int, ...]
    names: tuple[str, ...]


def holders_of(
    stage_parameters: Sequence[Sequence[str]], stage_ranks: Sequence[Sequence[int]]
) -> tuple[Holders, ...]:
    """All parameters with more than one holder, grouped by their holders; equal on every rank.

    Both arguments have one entry per stage. Groups of single stages come first: each stage's own sum
    then follows its own actions, and only tied parameters wait for other stages.
    """
    # Step 1: collect the holders of each parameter.
    ranks: dict[str, set[int]] = {}
    for names, on in zip(stage_parameters, stage_ranks, strict=True):
        for name in names:
            ranks.setdefault(name, set()).update(on)
    # Step 2: group parameters with equal holders. Sorted names give every rank the same order.
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(ranks):
        if len(ranks[name]) > 1:
            groups.setdefault(tuple(sorted(ranks[name])), []).append(name)
    # Step 3: the stages' own groups, then those over several stages.
    own = {tuple(sorted(on)) for on in stage_ranks}
    ordered = sorted(groups, key=lambda on: (on not in own, on))
    return tuple(Holders(on, tuple(groups[on])) for on in ordered)


class GradientSum:
    """Sums the gradients of this rank's shared parameters over their holders."""

    is_late = True
    """Whether all sums follow all actions."""

    def __init__(
        self,
        holders: Sequence[Holders],
        parameters: NamedParameters,
        rank: int,
        *,
        use_varies: bool = False,
    ) -> None:
        """With `use_varies`, each step may use other parameters.

        Collective: all ranks call this with equal `holders`, because it creates process groups.
        """
        self.use_varies = use_varies
        self.shared: list[SharedParameters] = []
        """Parameters that this rank shares with others, grouped by their holders."""
        for ranks, names in holders:
            group = distributed.new_group(list(ranks))
            if rank in ranks:
                trained = [parameters[n] for n in names if parameters[n].requires_grad]
                self.shared.append(SharedParameters(group, trained, use_varies=use_varies))

    def beside(self, stage: int) -> AbstractContextManager[Made | None]:
        """In this block the stage's last backward runs. Here nothing is summed beside it."""
        return nullcontext()

    def run(self) -> None:
        """Replace each shared gradient by its sum. Collective: all holders must call this."""
        self.agree_on_used()
        self.sum_used(lambda _: True)

    def agree_on_used(self) -> None:
        """Find the parameters with a gradient on any holder. Collective: all holders must call this."""
        for shared in self.shared:
            shared.agree_on_used()

    def sum_used(self, is_asked: Callable[[torch.nn.Parameter], bool]) -> None:
        """Replace the asked gradients of used parameters by their sums. Collective: all holders must call this."""
        for shared in self.shared:
            for bucket in buckets([p for p in shared.used if is_asked(p)]):
                _sum_bucket(bucket, shared.group)

    def complete(self) -> None:
        """Make the summed gradients whole on every holder. Here they are. Collective."""

    def under_way(self) -> list[tuple[float, float]]:
        """When each bucket beside the last step's backwards went out and was summed."""
        return []


class SharedParameters:
    """Parameters with equal holders, and these holders' process group."""

    def __init__(
        self, group: object, parameters: list[torch.nn.Parameter], *, use_varies: bool = False
    ) -> None:
        assert isinstance(group, distributed.ProcessGroup)
        self.group = group
        self.parameters = parameters
        self.used: list[torch.nn.Parameter] = []
        """Parameters with a gradient on any holder, as of the last agreement."""
        self._use_varies = use_varies
        self._agreed = False

    def agree_on_used(self) -> None:
        """Find the parameters with a gradient on any holder. Collective: all holders must call this.

        Parameters without any gradient keep None instead of zero, because an optimizer with weight decay
        would shrink them. A graph is fixed, and so is the answer: only the first call communicates. Code
        that no graph holds may use other parameters in each step, so then each call does.
        """
        if self._agreed or not self.parameters:
            return
        has = [p.grad is not None for p in self.parameters]
        self.used = on_any_holder(self.parameters, has, self.group)
        self._agreed = not self._use_varies


def on_any_holder(
    parameters: Sequence[torch.nn.Parameter], has: Sequence[bool], group: distributed.ProcessGroup
) -> list[torch.nn.Parameter]:
    """The parameters for which `has` is true on any rank of the group. Collective over the group."""
    count = torch.tensor(has, dtype=torch.int32, device=parameters[0].device)
    distributed.all_reduce(count, group=group)
    return [p for p, n in zip(parameters, count.tolist(), strict=True) if n]


def buckets(
    parameters: Sequence[torch.nn.Parameter], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[list[torch.nn.Parameter]]:
    """Groups of parameters with one dtype, up to `bucket_bytes` each, in equal order on all
    holders."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in sorted(parameters, key=lambda p: str(p.dtype)):
        full = size + parameter.nbytes > bucket_bytes
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
