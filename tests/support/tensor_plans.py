"""Plans whose ranks are tensor groups."""

import msgspec

from autopart.records.plan import Plan
from autopart.records.tensor_degree import Tensor


def in_groups(plan: Plan, degree: int, *, sequence_parallel: bool = False) -> Plan:
    """The plan with tensor groups of `degree` GPUs as its ranks."""
    cluster = msgspec.structs.replace(
        plan.cluster, gpus_per_node=plan.cluster.gpus_per_node * degree
    )
    tensor = Tensor(degree=degree, sequence_parallel=sequence_parallel)
    return msgspec.structs.replace(plan, tensor=tensor, cluster=cluster)
