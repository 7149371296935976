"""One rank's part of a sharded model: its local graph, and what it owes its tensor group.

Every rank of a group runs the same local graph on its own shards. Activations meet inside the graph. Two
things remain for the step: gradients that several ranks hold in parts, and whole tensors for a
comparison with the plain model.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import fx, nn

from autopart.records.rank_group import Group
from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.groups import TensorGroup, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model, local_tensor, whole_tensor
from autopart.runtime.sharding.shard import ShardedGraph, shard_graph


class RankShards:
    """The shards of one rank."""

    def __init__(self, sharded: ShardedGraph, group: TensorGroup) -> None:
        # The captured module would keep the whole weights alive.
        empty = replace(sharded.captured, module=fx.GraphModule({}, fx.Graph()))
        self._sharded = replace(sharded, captured=empty)
        self._group = group
        self.rank = group.rank()
        """The rank inside its tensor group, from 0."""
        self.degree = sharded.degree
        self.states = sharded.states
        """How the ranks of the group hold each value, by the captured node's name."""

    def exchanging(self) -> AbstractContextManager[None]:
        """Return a block in which local graphs exchange through this rank's group."""
        return registered(GROUP, self._group)

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace each gradient that ranks of the group hold in parts by its sum. Collective in the group.

        The ranks run one graph, so either all have a gradient for a parameter, or none has.
        """
        # Step 1: whole parameters that only sharded work reads.
        for name in sorted(self._sharded.partial_parameters & parameters.keys()):
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.copy_(self._group.all_reduce(gradient, "sum"))
        # Step 2: shards that several consecutive ranks hold.
        for name in sorted(self._sharded.shards.keys() & parameters.keys()):
            copies, gradient = self._sharded.shards[name].copies, parameters[name].grad
            if copies > 1 and gradient is not None:
                first = self.rank - self.rank % copies
                same = self._group.all_gather(gradient)[first : first + copies]
                gradient.copy_(torch.stack(list(same)).sum(0))

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole parameters, or their summed gradients, from those of all ranks. Collective in the group."""
        found: dict[str, torch.Tensor] = {}
        for name in sorted(tensors):
            local = tensors[name].detach()
            is_shard = name in self._sharded.shards
            parts = self._group.all_gather(local) if is_shard else [local]
            found[name] = whole_tensor(self._sharded, name, parts)
        return found

    def norm_share(self, name: str) -> float:
        """Return the factor for squares of this rank's gradient, so that the group's sum counts each element once."""
        shard = self._sharded.shards.get(name)
        return 1 / (self._sharded.degree if shard is None else shard.copies)

    def sum_over_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over the group's ranks. Collective in the group."""
        return self._group.all_reduce(tensor, "sum")

    def whole_shape(self, name: str, local: torch.Size) -> torch.Size:
        """Return the shape of a whole parameter, or of its optimizer state, from the rank's part."""
        shard, shape = self._sharded.shards.get(name), list(local)
        if shard is not None:
            shape[shard.dim] *= self._sharded.degree // shard.copies
        return torch.Size(shape)

    def own_part(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return the rank's part of a whole parameter, or of its optimizer state, which have `whole_shape`."""
        sharded = self._sharded
        return local_tensor(whole, sharded.shards.get(name), sharded.degree, self.rank)


def local_part(
    captured: Captured, tensor: Group, group: TensorGroup
) -> tuple[Captured, RankShards]:
    """Return one rank's local graph of a captured model, and its shards, in a tensor group."""
    sharded = shard_graph(captured, tensor.tensor, sequence_parallel=tensor.sequence_parallel)
    return local_model(sharded, group.rank()), RankShards(sharded, group)
