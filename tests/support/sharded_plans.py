"""Plans whose ranks share samples and state."""

import functools

import msgspec

from autopart.records.cluster import Link
from autopart.records.plan import Plan
from autopart.records.rank_group import Group, Reduce, Shard
from autopart.search.planner import solve
from tests.support.samples import sample_cluster, sample_profile


@functools.cache
def sample_sharded_plan(shard: Shard) -> Plan:
    """The planner's plan for `sample_profile` in two stages over 2 GPUs each, whose messages show."""
    on = sample_cluster(gpus_per_node=4)
    on = msgspec.structs.replace(on, intra_node=Link(bandwidth=1e7), sends_overlap=True)
    return solve(sample_profile(), on, num_microbatches=8, num_stages=2, shard=shard)


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
