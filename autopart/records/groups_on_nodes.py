"""Rank groups on nodes: a group is an even part of one node, or whole nodes.

GPUs of a group have consecutive numbers. So the GPUs that one collective joins lie alike for every set of them: each
product of the first degrees divides a node, or is whole nodes. The tensor degree alone must divide a node.
"""

import itertools
import operator
from collections.abc import Iterator

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.rank_group import (
    Group,
    MaybeGroup,
    group_size,
)
from autopart.text import counted

MOST_LISTED = 6
"""Sizes that an error names of each kind."""


def fits_nodes(group: MaybeGroup, cluster: Cluster) -> bool:
    """Whether a cluster of equal nodes is filled by groups like this one."""
    if not isinstance(group, Group):
        return True
    return (
        cluster.gpus_per_node % group.tensor == 0
        and all(_is_even(size, cluster) for size in _products(group))
        and num_gpus(cluster) % group_size(group) == 0
    )


def check_fits_nodes(group: MaybeGroup, cluster: Cluster) -> None:
    """Raise AutopartError, with the sizes that do, unless the nodes are filled by groups like this one."""
    if fits_nodes(group, cluster) or not isinstance(group, Group):
        return
    room = cluster.gpus_per_node
    able = ", ".join(str(t) for t in range(1, room + 1) if room % t == 0)
    if room % group.tensor:
        raise AutopartError(
            f"a tensor group of {counted(group.tensor, 'GPU')} does not fill a node of {counted(room, 'GPU')}: "
            f"the tensor degree must divide the GPUs of a node, as {able} do"
        )
    uneven = [size for size in _products(group) if not _is_even(size, cluster)]
    size = group_size(group)
    part = f" (its first degrees make {uneven[0]})" if uneven and uneven[0] < size else ""
    raise AutopartError(
        f"a rank group of {counted(size, 'GPU')}{part} does not fill a node of {counted(room, 'GPU')}: the product of its "
        f"degrees must divide the GPUs of a node, as {able} do{_whole_nodes(cluster)}"
    )


def _whole_nodes(cluster: Cluster) -> str:
    """The sizes of groups on several whole nodes, in words; empty with one node."""
    nodes = [k for k in range(2, cluster.num_nodes + 1) if cluster.num_nodes % k == 0]
    if not nodes:
        return ""
    listed = ", ".join(str(k * cluster.gpus_per_node) for k in nodes[:MOST_LISTED])
    return f", or be whole nodes, as {listed}{', …' * (len(nodes) > MOST_LISTED)} do"


def _products(group: Group) -> Iterator[int]:
    """The GPUs of the first degrees together, from the tensor degree alone to the whole group."""
    return itertools.accumulate(
        (group.tensor, group.context, group.expert, group.data), operator.mul
    )


def _is_even(size: int, cluster: Cluster) -> bool:
    return cluster.gpus_per_node % size == 0 or size % cluster.gpus_per_node == 0


def shard_degrees(base: MaybeGroup, cluster: Cluster) -> list[int]:
    """The shard degrees with which groups fill nodes: an even part of one, or whole nodes that divide the cluster's."""
    size, room, nodes = group_size(base), cluster.gpus_per_node, cluster.num_nodes
    parts = [own for own in range(size, room) if room % own == 0]
    whole = [k * room for k in range(1, nodes + 1) if nodes % k == 0]
    return [own // size for own in (*parts, *whole) if own > size and own % size == 0]
