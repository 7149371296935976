"""Blocks: nodes that must share a device.

A block is a group of nodes: a colour, or a node without one. Groups in a circle under the
contiguity order are one block. Formula (1) in charges.py then reads, for a set S of blocks:

    accelerator(S) = sum of work over S + sum of the costs of all links that S splits

A link joins the blocks that hold a node and the readers of its output. S splits a link where it
holds some, not all, of its blocks. Blocks stand in a topological order. Links with the same blocks
are one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx

from autopart.peers.dnn_partitioning.charges import (
    DnnInstance,
    DnnNode,
    Group,
    group_edges,
    group_of,
)
from autopart.peers.dnn_partitioning.orders import depth_first_order


class BlockLink(NamedTuple):
    """The blocks that hold a node and its readers, and the cost to move the node's output."""

    blocks: tuple[int, ...]
    """Ascending, two at least."""
    cost: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """The whole graph as blocks in a topological order: one entry per block in each field."""

    members: tuple[tuple[int, ...], ...]
    """Node ids in each block."""
    work: tuple[float, ...]
    """Latency on an accelerator."""
    cpu_work: tuple[float, ...]
    """Latency on a CPU."""
    sizes: tuple[float, ...]
    """Bytes on an accelerator."""
    on_accelerator: tuple[bool, ...]
    """Whether the block can run on an accelerator."""
    before: tuple[tuple[int, ...], ...]
    """The blocks that must stand on no later device."""
    links: tuple[BlockLink, ...]
    """Links with a cost above 0."""


class BlockStage(NamedTuple):
    """Blocks on one device."""

    on_cpu: bool
    blocks: tuple[int, ...]


class Division(NamedTuple):
    """All blocks on devices, in pipeline order."""

    largest: int
    """The largest charge, in quanta."""
    stages: tuple[BlockStage, ...]


def blocks_of(instance: DnnInstance, *, contiguous: bool = True) -> Blocks:
    """The blocks in an instance; where splits need not be contiguous, without an order."""
    graph: nx.DiGraph[Group] = nx.DiGraph()
    graph.add_nodes_from(dict.fromkeys(group_of(node) for node in instance.nodes))
    if contiguous:
        graph.add_edges_from(group_edges(instance))
    joined: nx.DiGraph[int] = nx.condensation(graph)
    component: dict[Group, int] = joined.graph["mapping"]
    # Groups in a circle are one component; components stand in a depth-first topological order.
    order = depth_first_order([tuple(joined.predecessors(b)) for b in joined])
    place = {block: index for index, block in enumerate(order)}
    home = {node.id: place[component[group_of(node)]] for node in instance.nodes}
    members: list[list[DnnNode]] = [[] for _ in order]
    for node in instance.nodes:
        members[home[node.id]].append(node)
    ends: dict[int, set[int]] = {}
    for source, target in instance.edges:
        ends.setdefault(source, {home[source]}).add(home[target])
    return Blocks(
        members=tuple(tuple(node.id for node in row) for row in members),
        work=tuple(math.fsum(node.accelerator_latency for node in row) for row in members),
        cpu_work=tuple(math.fsum(node.cpu_latency for node in row) for row in members),
        sizes=tuple(math.fsum(node.size for node in row) for row in members),
        on_accelerator=tuple(all(node.on_accelerator for node in row) for row in members),
        before=tuple(
            tuple(sorted(place[p] for p in joined.predecessors(block))) for block in order
        ),
        links=joined_links((blocks, instance.costs[u]) for u, blocks in ends.items()),
    )


def joined_links(found: Iterable[tuple[Iterable[int], float]]) -> tuple[BlockLink, ...]:
    """Links in ascending order: equal ones added up, without links in one block or without a cost."""
    costs: dict[tuple[int, ...], list[float]] = {}
    for blocks, cost in found:
        ends = tuple(sorted(set(blocks)))
        if len(ends) > 1 and cost > 0:
            costs.setdefault(ends, []).append(cost)
    return tuple(BlockLink(ends, math.fsum(costs[ends])) for ends in sorted(costs))
