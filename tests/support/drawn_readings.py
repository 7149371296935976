"""Readings of a network that is known: times from the closed form, with noise."""

import random
from collections.abc import Iterator

from autopart.cost.collectives import Fabric, GroupShape, price_of
from autopart.records.network import Network
from autopart.records.readings import (
    CollectiveReadings,
    ComputeReadings,
    Measured,
    NetworkReadings,
    Reading,
    SendReadings,
)

MiB = 1 << 20
SIZES = tuple(MiB << power for power in range(0, 11, 2))
COLLECTIVES: tuple[Measured, ...] = ("all_reduce", "all_gather", "all_to_all")


def shapes(num_nodes: int, per_node: int) -> Iterator[tuple[int, int, int]]:
    """Ranks, nodes, and groups at once on the same nodes."""
    inside = {n for n in (2, 4, per_node) if 1 < n <= per_node}
    yield from ((n, 1, per_node // n) for n in sorted(inside))
    for nodes in {2, num_nodes}:
        yield nodes, nodes, 1
        if per_node > 1:
            yield nodes, nodes, per_node
            yield nodes * per_node, nodes, 1
        if per_node > 2:
            yield 2 * nodes, nodes, per_node // 2


def readings_of(
    network: Network, num_nodes: int, per_node: int, noise: float, seed: int
) -> NetworkReadings:
    """What a probe would measure. A lone group on shared rails has a whole rail for itself."""
    rng = random.Random(seed)

    def reading(size: int, seconds: float) -> Reading:
        noisy = seconds * (1 + rng.uniform(-noise, noise))
        return Reading(num_bytes=size, time=noisy, spread=0.0, count=5)

    def seconds(one: Measured, group: GroupShape, at_once: int, size: int) -> float:
        rails = network.rails
        busy = at_once * group.per_node
        shared = Fabric(network, per_node, num_nodes)
        if group.nodes > 1 and busy < per_node and rails < per_node:
            # So few GPUs share the rails, each on its own as far as there are rails.
            shared = Fabric(network, max(busy, rails), num_nodes)
        return price_of(shared, one, group).seconds(float(size))

    rate = network.rails * network.rail_bandwidth / per_node
    return NetworkReadings(
        sends=tuple(
            SendReadings(
                path=path,
                at_once=per_node,
                readings=tuple(reading(size, size / rate / share) for size in SIZES),
            )
            for path, share in (("same rail", 1.0), ("other rail", network.off_rail))
        ),
        collectives=tuple(
            CollectiveReadings(
                collective=one,
                ranks=ranks,
                nodes=nodes,
                at_once=at_once,
                readings=tuple(
                    reading(
                        size, seconds(one, GroupShape(ranks, nodes, ranks // nodes), at_once, size)
                    )
                    for size in SIZES
                ),
            )
            for ranks, nodes, at_once in shapes(num_nodes, per_node)
            for one in COLLECTIVES
        ),
        compute=ComputeReadings(alone=1.0, beside=1.0 + network.slowdown),
    )
