"""Whole tensors from the parts of a rank's processes, and parts from whole tensors, for checks and saved state.

A part is flat (`runtime/update/state_units.py`). Where the rank has a tensor degree too, the parts join to a tensor
shard, and `RankShards` joins those.
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.sharding.loss_of_samples import SAMPLES
from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.sharding.shard_groups import shards_registered


class DataShards:
    """The parts of one process. It has the methods of `RankShards` that the engine uses."""

    def __init__(self, state: ShardedState, inner: RankShards | None) -> None:
        self._state, self._inner = state, inner
        self._group = state.data.group
        among = 1 if inner is None else inner.degree
        self.rank = self._group.rank() * among + (0 if inner is None else inner.rank)
        """This process's place in its rank group, from 0."""

    def exchanging(self) -> AbstractContextManager[None]:
        """Return a block in which local graphs exchange through the tensor group."""
        return self._exchanging()

    @contextmanager
    def _exchanging(self) -> Generator[None]:
        inner = nullcontext() if self._inner is None else self._inner.exchanging()
        with inner, shards_registered(SAMPLES, self._group):
            yield

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sum gradients that the tensor group holds in parts. Collective in the tensor group."""
        if self._inner is not None:
            self._inner.sum_gradients(parameters)

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole parameters, or what has an element for each of theirs. Collective in the rank group."""
        joined = {
            name: self._state.unit(name).whole_of(name, tensors[name].detach())
            if name in self._state.parameters
            else tensors[name].detach()
            for name in sorted(tensors)
        }
        return joined if self._inner is None else self._inner.whole(joined)

    def norm_share(self, name: str) -> float:
        """Return the factor for squares of this process's gradient, so that each element counts once."""
        return 1.0 if self._inner is None else self._inner.norm_share(name)

    def sum_over_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes of the rank. Collective over them."""
        total = self._group.sum(tensor.clone())
        return total if self._inner is None else self._inner.sum_over_group(total)

    def whole_shape(self, name: str, local: torch.Size) -> torch.Size:
        """Return the shape of a whole parameter or buffer, whose local one is given."""
        if name in self._state.parameters:
            local = self._state.unit(name).parameters[name].shape
        return local if self._inner is None else self._inner.whole_shape(name, local)

    def own_part(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a whole parameter, or its own slice of a buffer."""
        local = whole if self._inner is None else self._inner.own_part(name, whole)
        if name not in self._state.parameters:
            return local
        return self._state.unit(name).own_of(name, local)
