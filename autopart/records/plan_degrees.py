"""The rank groups of a plan: one for all stages, or each stage's own tensor degree; and the GPUs of its ranks."""

import itertools
from collections.abc import Sequence
from typing import Protocol

from autopart.errors import AutopartError, PlanError
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.groups_on_nodes import check_fits_nodes
from autopart.records.rank_group import (
    Group,
    MaybeGroup,
    group_name,
    group_size,
    is_tensor_only,
)
from autopart.text import counted


class OwnStage(Protocol):
    """What these functions read of a stage."""

    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def group(self) -> MaybeGroup: ...


class OwnPlan(Protocol):
    """What these functions read of a plan (`autopart.records.plan.Plan`)."""

    @property
    def group(self) -> MaybeGroup: ...
    @property
    def stages(self) -> Sequence[OwnStage]: ...
    @property
    def orders(self) -> tuple[str, ...]: ...
    @property
    def cluster(self) -> Cluster: ...
    @property
    def microbatch_size(self) -> int: ...
    @property
    def num_microbatches(self) -> int: ...


def gpus_of_ranks(sizes: Sequence[int]) -> list[range]:
    """For each rank its GPUs, from the number of each: they stand side by side in rank order.

    With g in each, rank q is the GPUs q g to q g + g - 1.
    """
    ends = list(itertools.accumulate(sizes))
    return [range(end - g, end) for end, g in zip(ends, sizes, strict=True)]


def has_several_degrees(plan: OwnPlan) -> bool:
    """Whether stages have tensor degrees of their own, and not all the same."""
    return any(isinstance(stage.group, Group) for stage in plan.stages)


def stage_groups(plan: OwnPlan) -> tuple[MaybeGroup, ...]:
    """For each stage its rank group; unset for one GPU."""
    if has_several_degrees(plan):
        return tuple(stage.group for stage in plan.stages)
    return (plan.group,) * len(plan.stages)


def rank_sizes(plan: OwnPlan) -> tuple[int, ...]:
    """For each rank its number of GPUs; a rank without a stage is one GPU where stages have their own.

    `gpus_of_ranks` gives the GPUs of these ranks.
    """
    found = [group_size(plan.group)] * len(plan.orders)
    for stage, tensor in zip(plan.stages, stage_groups(plan), strict=True):
        for rank in stage.ranks:
            found[rank] = group_size(tensor)
    return tuple(found)


def num_processes(plan: OwnPlan) -> int:
    """How many processes run the plan: one per GPU. A rank group is a process for each of its GPUs."""
    return sum(rank_sizes(plan))


def rank_of_process(plan: OwnPlan, process: int) -> int:
    """The rank to which a process belongs. Raises PlanError where the plan has no such process."""
    for rank, processes in enumerate(gpus_of_ranks(rank_sizes(plan))):
        if process in processes:
            return rank
    raise PlanError(f"the plan has no rank for process {process}")


def group_of_rank(plan: OwnPlan, rank: int) -> MaybeGroup:
    """The rank group of one rank."""
    for stage, group in zip(plan.stages, stage_groups(plan), strict=True):
        if rank in stage.ranks:
            return group
    return plan.group


def degrees_name(plan: OwnPlan) -> str:
    """The plan's rank group in words, or the tensor degree of each stage where they differ."""
    if not has_several_degrees(plan):
        return group_name(plan.group)
    tensors = stage_groups(plan)
    split = any(isinstance(one, Group) and one.sequence_parallel for one in tensors)
    listed = "/".join(str(group_size(one)) for one in tensors)
    return f"tensor degrees {listed}" + " with sequence parallelism" * split


def check_one_degree(plan: OwnPlan, what: str) -> None:
    """Raise PlanError where stages have tensor degrees of their own, and `what` cannot have these."""
    if has_several_degrees(plan):
        raise PlanError(
            f"the plan has {degrees_name(plan)}, and {what} has one degree for all stages; solve with "
            "--tensor auto for a plan that it takes"
        )


def check_one_gpu_per_rank(plan: OwnPlan, what: str) -> None:
    """Raise PlanError where the plan's ranks are groups, and `what` cannot have these."""
    if max(rank_sizes(plan)) > 1:
        raise PlanError(
            f"the plan has {degrees_name(plan)}, and {what} takes no {_kind(plan)} group yet; "
            "solve with --tensor 1 for a plan that it takes"
        )


def _kind(plan: OwnPlan) -> str:
    """The word for the plan's groups."""
    return "tensor" if all(map(is_tensor_only, stage_groups(plan))) else "rank"


def check_room(plan: OwnPlan, where: str) -> None:
    """Raise PlanError where nodes cannot be filled with the plan's rank groups, or ranks are too many."""
    for group in sorted(set(stage_groups(plan)), key=group_size):
        if group_size(group) > 1 and plan.cluster.gpus:
            raise PlanError(f"{where}: {group_name(group)} needs equal GPUs")
        try:
            check_fits_nodes(group, plan.cluster)
        except AutopartError as error:
            raise PlanError(f"{where}: {error}") from None
    room = num_gpus(plan.cluster) // group_size(plan.group)
    if len(plan.orders) > room:
        of_groups = (
            f"{counted(room, 'GPU')}"
            if room == num_gpus(plan.cluster)
            else f"{counted(room, f'{_kind(plan)} group')}"
        )
        raise PlanError(f"{where}: it has {counted(len(plan.orders), 'order')} for {of_groups}")


def check_own_degrees(plan: OwnPlan, where: str) -> None:
    """Raise PlanError where the stages' own tensor degrees contradict each other, or have too few GPUs."""
    if not has_several_degrees(plan):
        return
    tensors = stage_groups(plan)
    if isinstance(plan.group, Group):
        raise PlanError(f"{where}: the plan has a group, and so have stages; one of them may")
    if not all(map(is_tensor_only, tensors)):
        raise PlanError(
            f"{where}: stages have groups of their own, and these have tensor degrees only"
        )
    if len(set(tensors)) == 1:
        raise PlanError(
            f"{where}: all stages have {group_name(tensors[0])}; the plan says a degree that all have"
        )
    if len({one.sequence_parallel for one in tensors if isinstance(one, Group)}) > 1:
        raise PlanError(f"{where}: some stages have sequence parallelism, and others do not")
    _check_own_ranks(plan, where)
    degrees = rank_sizes(plan)
    if sum(degrees) > num_gpus(plan.cluster):
        raise PlanError(
            f"{where}: its ranks are {counted(sum(degrees), 'GPU')}, and the cluster has {num_gpus(plan.cluster)}"
        )
    _check_starts(degrees, where)


def _check_own_ranks(plan: OwnPlan, where: str) -> None:
    """Raise PlanError unless stages with tensor degrees of their own have equal replicas on ranks of their own."""
    ranks = [rank for stage in plan.stages for rank in stage.ranks]
    if len(set(ranks)) < len(ranks):
        raise PlanError(f"{where}: stages with tensor degrees of their own share a rank")
    replicas = sorted({len(stage.ranks) for stage in plan.stages})
    if len(replicas) > 1 or plan.num_microbatches % replicas[0]:
        raise PlanError(
            f"{where}: stages with tensor degrees of their own need equally many replicas, a divisor of the "
            f"{counted(plan.num_microbatches, 'microbatch')}; they have {', '.join(map(str, replicas))}"
        )


def _check_starts(degrees: Sequence[int], where: str) -> None:
    """Raise PlanError unless each tensor group starts at a multiple of its own size.

    Groups whose size divides a node then stay inside one.
    """
    for rank, gpus in enumerate(gpus_of_ranks(degrees)):
        if gpus.start % len(gpus):
            raise PlanError(
                f"{where}: rank {rank} is the GPUs {gpus.start} to {gpus.stop - 1}, but a tensor group of "
                f"{len(gpus)} starts at a multiple of {len(gpus)}"
            )
