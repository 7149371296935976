"""The gradient sum of parameters that are tied across stages with different tensor degrees.

Their shards differ in shape, so only whole gradients can be added. Each process of a group with t places
has the whole gradient of its stage, gathered in the group, and gives a t-th of it:

    sum = Σ over all processes of all holders:  whole gradient / t

Then each process takes its own part of the sum. All processes of a group do the same, so shards stay equal
where they should.
"""

from collections.abc import Sequence

import torch
from torch import distributed

from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.update.gradient_sum import Holders, NamedParameters, SharedParameters


class UnequalTies:
    """Sums the gradients of one process's tied parameters over stages with other tensor degrees."""

    def __init__(
        self,
        holders: Sequence[Holders],
        parameters: NamedParameters,
        shards: RankShards | None,
        process: int,
    ) -> None:
        """`holders` counts processes. Collective: all processes call this, because it creates process groups."""
        self._shards = shards
        self._tied: list[SharedParameters] = []
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        for processes, names in holders:
            group = distributed.new_group(list(processes))
            if process in processes:
                trained = [parameters[n] for n in names if parameters[n].requires_grad]
                self._tied.append(SharedParameters(group, trained))

    def run(self) -> None:
        """Replace each gradient by its sum, cut as the parameter is. Collective over all holders.

        Sums within tensor groups are done before (`RankShards.sum_gradients`).
        """
        for tied in self._tied:
            tied.agree_on_used()
            for parameter in tied.used:
                self._sum(parameter, tied.group)

    def _sum(self, parameter: torch.nn.Parameter, group: distributed.ProcessGroup) -> None:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        shards, name = self._shards, self._names[id(parameter)]
        if shards is None:
            whole = own.detach().clone(memory_format=torch.contiguous_format)
        else:
            whole = shards.whole({name: own})[name].div(shards.degree).contiguous()
        distributed.all_reduce(whole, group=group)
        part = whole if shards is None else shards.own_part(name, whole)
        own.copy_(part)
        parameter.grad = own
