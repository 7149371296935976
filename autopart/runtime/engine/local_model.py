"""The captured model as one process runs it: local graphs at the tensor degrees of the plan's stages."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.plan_degrees import (
    gpus_of_ranks,
    group_of_rank,
    has_several_degrees,
    rank_sizes,
    stage_groups,
)
from autopart.records.rank_group import Group, degrees_of, group_size
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.engine.group_part import DataPart, GroupPart, OneWorld
from autopart.runtime.engine.resharded_transfers import Shape, cuts_of
from autopart.runtime.sharding.groups import TensorGroup
from autopart.runtime.sharding.local_model import local_model
from autopart.runtime.sharding.loss_of_samples import check_samples_apart, split_loss
from autopart.runtime.sharding.rank_shards import RankShards, local_part
from autopart.runtime.sharding.resharding import Side
from autopart.runtime.sharding.shard import shard_graph
from autopart.runtime.sharding.shard_groups import ShardGroup
from autopart.runtime.sharding.states import REPLICATED, ShardState
from autopart.text import counted


@dataclass(frozen=True, slots=True)
class LocalModel:
    """The captured model at this process's tensor degree, and at those of other stages."""

    plan: Plan
    captured: Captured
    """At the degree of this process."""
    shards: RankShards | None
    place: int
    """This process's place in its tensor group."""
    rank: int
    others: Mapping[int, Captured]
    """Local graphs at other degrees, by degree: for what crosses the cuts, not to run."""
    states: Mapping[int, Mapping[str, ShardState]]
    """How the ranks of a group hold each value, by degree; not for degree 1."""
    shapes: Mapping[str, Shape]
    """Those of the whole values, by name."""
    data: DataPart | None = None
    """How the processes of this rank share samples and state; None where they do not."""

    def programs(self) -> tuple[tuple[StageProgram, ...], GroupPart]:
        """The plan's stages, each at its own tensor degree, and this process's part in the groups.

        Raises PlanError where the stages are not those of the model, or where a value cannot cross a cut.
        """
        plan, layers = self.plan, [stage.layers for stage in self.plan.stages]
        own = split_stages(self.captured, layers)
        if not has_several_degrees(plan):
            return own, GroupPart(self.shards, data=self.data)
        split = {degree: split_stages(one, layers) for degree, one in self.others.items()}
        degrees = [group_size(tensor) for tensor in stage_groups(plan)]
        programs = tuple(split.get(degree, own)[s] for s, degree in enumerate(degrees))
        sides = [
            {name: Side(self._state(degree, name), degree) for name in self.shapes}
            for degree in degrees
        ]
        cuts = cuts_of(programs, sides, self.shapes)
        processes = gpus_of_ranks(rank_sizes(plan))
        return programs, GroupPart(self.shards, OneWorld(self.rank, self.place, processes, cuts))

    def _state(self, degree: int, name: str) -> ShardState:
        return REPLICATED if degree == 1 else self.states[degree][name]


def local_model_of(
    plan: Plan, captured: Captured, rank: int, place: int, group: TensorGroup | None
) -> LocalModel:
    """The captured model for the process at `place` of the plan's `rank`, whose tensor group is `group`.

    Raises ModelError where the model cannot be sharded, UsageError without a group where the plan needs one.
    """
    own, data = group_of_rank(plan, rank), None
    local, shards, others = captured, None, dict[int, Captured]()
    states: dict[int, Mapping[str, ShardState]] = {}
    if isinstance(own, Group):
        if group is None:
            raise UsageError(
                f"rank {rank} of the plan needs a rank group of {counted(group_size(own), 'process', 'processes')}"
            )
        if math.prod(degrees_of(own)) > 1:
            local, shards = local_part(captured, own, group.of_layers)
            states[own.tensor] = shards.states
        if group.of_samples is not None:
            check_samples_apart(captured)
            data = data_part(own, local, group.of_samples)
    for tensor in {group_size(one): one for one in stage_groups(plan)}.values():
        if group_size(tensor) == group_size(own):
            continue
        others[group_size(tensor)] = captured
        if isinstance(tensor, Group):
            split = tensor.sequence_parallel
            sharded = shard_graph(captured, tensor.tensor, sequence_parallel=split)
            others[tensor.tensor], states[tensor.tensor] = local_model(sharded, 0), sharded.states
    shapes = {value.name: value.shape for value in captured.values}
    return LocalModel(plan, local, shards, place, rank, others, states, shapes, data)


def data_part(own: Group, captured: Captured, group: ShardGroup) -> DataPart:
    """How a process shares samples and state; changes the loss of the captured graph (`split_loss`)."""
    assert own.shard is not msgspec.UNSET and own.reduce is not msgspec.UNSET
    return DataPart(group, own.shard, own.reduce, split_loss(captured, own.data))
