"""Fewer, larger blocks: blocks that share an expensive link are joined, partly at random."""

import math
from collections.abc import Sequence

import numpy as np

from autopart.peers.dnn_partitioning.block_charges import Ints
from autopart.peers.dnn_partitioning.blocks import Blocks, joined_links

SPREAD = 0.5
"""Standard deviation of the logarithm by which a link's rank varies."""


def coarsen(
    blocks: Blocks, count: int, most_work: float, rng: np.random.Generator
) -> tuple[Blocks, Ints]:
    """About `count` blocks with at most `most_work` each, and the new block for each old one.

    Links are taken in the order of their cost, divided by their blocks less one, times a random
    factor. The new blocks have no order.
    """
    size = len(blocks.work)
    root, work = list(range(size)), list(blocks.work)

    def find(block: int) -> int:
        """The block that stands for all blocks joined with it."""
        while root[block] != block:
            root[block] = root[root[block]]
            block = root[block]
        return block

    # Step 1: rank the links.
    factors = np.exp(rng.normal(0.0, SPREAD, len(blocks.links)))
    ranks = [
        f * link.cost / (len(link.blocks) - 1)
        for f, link in zip(factors, blocks.links, strict=True)
    ]
    left = size
    # Step 2: join each link's blocks while they stay small enough, and more than `count` are left.
    for number in np.argsort(-np.array(ranks), kind="stable").tolist():
        first, *others = blocks.links[number].blocks
        for other in others:
            a, b = find(first), find(other)
            if a != b and work[a] + work[b] <= most_work and left > count:
                root[b], left = a, left - 1
                work[a] += work[b]
    home = np.unique([find(block) for block in range(size)], return_inverse=True)[1]
    return _joined(blocks, home.astype(np.int64)), home.astype(np.int64)


def _joined(blocks: Blocks, home: Ints) -> Blocks:
    """The blocks after joining: `home` has the new block for each old one."""
    size = int(home.max()) + 1
    members: list[list[int]] = [[] for _ in range(size)]
    for block, nodes in enumerate(blocks.members):
        members[home[block]] += nodes

    def added(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(math.fsum(row) for row in _rows(values, home, size))

    return Blocks(
        members=tuple(map(tuple, members)),
        work=added(blocks.work),
        cpu_work=added(blocks.cpu_work),
        sizes=added(blocks.sizes),
        on_accelerator=tuple(all(row) for row in _rows(blocks.on_accelerator, home, size)),
        before=((),) * size,
        links=joined_links(
            ([int(home[b]) for b in link.blocks], link.cost) for link in blocks.links
        ),
    )


def _rows(values: Sequence[float], home: Ints, size: int) -> list[list[float]]:
    """The values for each new block."""
    rows: list[list[float]] = [[] for _ in range(size)]
    for block, value in enumerate(values):
        rows[home[block]].append(value)
    return rows
