"""One rank's part of a divided model: its local graph, and what it owes its rank group.

Every rank of a group runs the same local graph on its own shards and positions. Activations meet inside the graph. Two
things remain for the step: gradients that several ranks hold in parts, and whole tensors for a
comparison with the plain model.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import fx, nn

from autopart.records.rank_group import Group, degrees_of
from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.group_graphs import GroupGraphs, exchanging, graphs_of
from autopart.runtime.sharding.groups import TensorGroup
from autopart.runtime.sharding.local_model import local_tensor, whole_tensor
from autopart.runtime.sharding.states import ParameterShard, ShardState


class RankShards:
    """The shards of one rank."""

    def __init__(self, graphs: GroupGraphs, ranks: TensorGroup) -> None:
        # The captured module would keep the whole weights alive.
        sharded, experts, context = graphs.sharded, graphs.experts, graphs.context
        if sharded is not None:
            empty = replace(sharded.captured, module=fx.GraphModule({}, fx.Graph()))
            sharded = replace(sharded, captured=empty)
        self._sharded = sharded
        self._of_positions = frozenset[str]() if context is None else context.partial_parameters
        self._of_samples = frozenset[str]() if experts is None else experts.partial_parameters
        self._degrees = degrees_of(graphs.group)
        self._tensor, self._context, self._expert = self._degrees
        self._experts = {} if experts is None else dict(experts.shards)
        self._ranks = ranks
        self._tensor_ranks = ranks.part(1, self._tensor) if sharded is not None else ranks
        self.rank = ranks.rank()
        """The rank inside its group, from 0."""
        self.degree = math.prod(self._degrees)
        """The ranks of the group."""
        self.states: Mapping[str, ShardState] = {} if sharded is None else sharded.states
        """How tensor ranks hold each value, by the captured node's name."""

    def exchanging(self) -> AbstractContextManager[None]:
        """Return a block in which local graphs exchange through this rank's group."""
        return exchanging(self._degrees, self._ranks)

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace each gradient that ranks of the group hold in parts by its sum. Collective in the group.

        The ranks run one graph, so either all have a gradient for a parameter, or none has.
        """
        # Step 1: all parameters that only work on positions reads, over the context ranks; then those that only work on
        # samples reads, over the expert ranks. Weights with experts are among the first alone.
        for name in sorted(self._of_positions & parameters.keys()):
            _sum_in_place(parameters[name].grad, self._ranks.part(self._tensor, self._context))
        for name in sorted(self._of_samples & parameters.keys()):
            _sum_in_place(parameters[name].grad, self._expert_ranks())
        if self._sharded is None:
            return
        # Step 2: whole parameters that only sharded work reads.
        for name in sorted(self._sharded.partial_parameters & parameters.keys()):
            _sum_in_place(parameters[name].grad, self._tensor_ranks)
        # Step 3: shards that several consecutive ranks hold.
        own = self._tensor_ranks.rank()
        for name in sorted(self._sharded.shards.keys() & parameters.keys()):
            copies, gradient = self._sharded.shards[name].copies, parameters[name].grad
            if copies > 1 and gradient is not None:
                first = own - own % copies
                same = self._tensor_ranks.all_gather(gradient)[first : first + copies]
                gradient.copy_(torch.stack(list(same)).sum(0))

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole parameters, or their summed gradients, from those of all ranks. Collective in the group."""
        found: dict[str, torch.Tensor] = {}
        for name in sorted(tensors):
            local = tensors[name].detach()
            if name in self._experts:
                local = torch.cat(list(self._expert_ranks().all_gather(local)))
            if self._sharded is None or name not in self._sharded.shards:
                found[name] = local
            else:
                parts = self._tensor_ranks.all_gather(local)
                found[name] = whole_tensor(self._sharded, name, parts)
        return found

    def norm_share(self, name: str) -> float:
        """Return the factor for squares of this rank's gradient, so that the group's sum counts each element once."""
        shard = self._shard(name)
        copies = self._tensor if shard is None else shard.copies
        return 1 / (copies * self._context * (1 if name in self._experts else self._expert))

    def sum_over_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over the group's ranks. Collective in the group."""
        return self._ranks.all_reduce(tensor, "sum")

    def whole_shape(self, name: str, local: torch.Size) -> torch.Size:
        """Return the shape of a whole parameter, or of its optimizer state, from the rank's part."""
        shard, shape = self._shard(name), list(local)
        if shard is not None:
            shape[shard.dim] *= self._tensor // shard.copies
        if name in self._experts:
            shape[0] *= self._expert
        return torch.Size(shape)

    def own_part(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return the rank's part of a whole parameter, or of its optimizer state, which have `whole_shape`."""
        shard = self._shard(name)
        own = 0 if shard is None else self._tensor_ranks.rank()
        of_tensor = local_tensor(whole, shard, self._tensor, own)
        expert = self._experts.get(name)
        place = 0 if expert is None else self._expert_ranks().rank()
        return local_tensor(of_tensor, expert, self._expert, place)

    def _expert_ranks(self) -> TensorGroup:
        return self._ranks.part(self._tensor * self._context, self._expert)

    def _shard(self, name: str) -> ParameterShard | None:
        return None if self._sharded is None else self._sharded.shards.get(name)


def _sum_in_place(gradient: torch.Tensor | None, ranks: TensorGroup) -> None:
    if gradient is not None:
        gradient.copy_(ranks.all_reduce(gradient, "sum"))


def local_part(captured: Captured, group: Group, ranks: TensorGroup) -> tuple[Captured, RankShards]:
    """Return one rank's local graph of a captured model, and its shards, in a rank group."""
    graphs = graphs_of(captured, group)
    return graphs.local(ranks.rank()), RankShards(graphs, ranks)
