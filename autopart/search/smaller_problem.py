"""A smaller problem whose best replicas, each times one number, are good ones for many GPUs.

It has some times fewer GPUs and microbatches, so each GPU has as many as before.
"""

import math

import msgspec

from autopart.records.cluster import num_gpus
from autopart.records.problem import Problem

FEW_GPUS = 64
"""The most GPUs for which there is no smaller problem."""


def times_smaller(problem: Problem) -> int:
    """By how many times fewer GPUs and microbatches a smaller problem has; 1 where there is none."""
    cluster, gpus = problem.cluster, num_gpus(problem.cluster)
    if cluster.gpus or gpus <= FEW_GPUS:
        return 1
    parts = cluster.num_nodes if cluster.num_nodes > 1 else cluster.gpus_per_node
    common = math.gcd(parts, problem.num_microbatches)
    fitting = [n for n in range(2, common + 1) if common % n == 0 and gpus // n <= FEW_GPUS]
    return min(fitting, default=1)


def divided(problem: Problem, times: int) -> Problem:
    """The problem with so many times fewer nodes and microbatches; GPUs, where there is one node."""
    cluster = problem.cluster
    if cluster.num_nodes > 1:
        smaller = msgspec.structs.replace(cluster, num_nodes=cluster.num_nodes // times)
    else:
        host = cluster.host_memory_bytes
        smaller = msgspec.structs.replace(
            cluster,
            gpus_per_node=cluster.gpus_per_node // times,
            host_memory_bytes=None if host is None else host // times,
        )
    return msgspec.structs.replace(
        problem, cluster=smaller, num_microbatches=problem.num_microbatches // times
    )
