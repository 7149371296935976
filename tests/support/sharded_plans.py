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
) -> Plan:
    """The plan with rank groups whose processes each have as many samples as one rank of `plan`."""
    cluster = msgspec.structs.replace(
        plan.cluster, gpus_per_node=plan.cluster.gpus_per_node * data * tensor
    )
    group = Group(
        tensor=tensor, sequence_parallel=sequence_parallel, data=data, shard=shard, reduce=reduce
    )
    return msgspec.structs.replace(
        plan, group=group, cluster=cluster, microbatch_size=plan.microbatch_size * data
    )
