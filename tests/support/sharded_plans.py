"""Plans whose ranks share samples and state."""

import msgspec

from autopart.records.plan import Plan
from autopart.records.rank_group import Group, Reduce, Shard


def sharing(
    plan: Plan,
    data: int,
    shard: Shard,
    *,
    reduce: Reduce = "microbatch",
    tensor: int = 1,
    sequence_parallel: bool = False,
    context: int = 1,
    expert: int = 1,
) -> Plan:
    """The plan with rank groups whose processes each have as many samples as one rank of `plan`."""
    size = plan.cluster.gpus_per_node * data * tensor * context * expert
    cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=size)
    group = Group(
        tensor=tensor,
        sequence_parallel=sequence_parallel,
        context=context,
        expert=expert,
        data=data,
        shard=shard,
        reduce=reduce,
    )
    return msgspec.structs.replace(
        plan, group=group, cluster=cluster, microbatch_size=plan.microbatch_size * data
    )
