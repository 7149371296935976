"""Plans whose ranks are tensor groups."""

from collections.abc import Sequence

import msgspec

from autopart.records.plan import Plan
from autopart.records.rank_group import Group


def in_groups(
    plan: Plan,
    degree: int,
    *,
    sequence_parallel: bool = False,
    context: int = 1,
    ring: bool = False,
    expert: int = 1,
) -> Plan:
    """The plan with groups of tensor degree `degree`, and of a context or expert degree, as its ranks."""
    size = plan.cluster.gpus_per_node * degree * context * expert
    cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=size)
    group = Group(
        tensor=degree,
        sequence_parallel=sequence_parallel,
        context=context,
        exchange="ring" if ring else msgspec.UNSET,
        expert=expert,
    )
    return msgspec.structs.replace(plan, group=group, cluster=cluster)


def with_own_degrees(
    plan: Plan, degrees: Sequence[int], *, sequence_parallel: bool = False, gpus: int = 4
) -> Plan:
    """The plan with a tensor degree for each stage, on a node of so many GPUs; 1 for no tensor group."""
    stages = tuple(
        msgspec.structs.replace(
            stage, group=Group(tensor=degree, sequence_parallel=sequence_parallel)
        )
        if degree > 1
        else stage
        for stage, degree in zip(plan.stages, degrees, strict=True)
    )
    cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=gpus)
    return msgspec.structs.replace(plan, stages=stages, cluster=cluster)


def ranks_for(degrees: Sequence[int]) -> list[tuple[int]]:
    """One rank for each stage, larger groups first: then each starts at a multiple of its size."""
    order = sorted(range(len(degrees)), key=lambda stage: -degrees[stage])
    return [(order.index(stage),) for stage in range(len(degrees))]
