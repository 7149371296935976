"""Small models in Piper's terms: every kind of choice, with ties, zeros and tight memory."""

import random

from autopart.peers.piper.charges import PiperChoice, PiperEdge, PiperLimits, PiperNet, PiperNode


def random_limits(rng: random.Random) -> PiperLimits:
    """At most 6 devices, and memory that some stages exceed."""
    return PiperLimits(
        devices=rng.randint(1, 6),
        memory_bytes=rng.choice([20.0, 30.0, 60.0, 100.0]) * rng.choice([1, rng.uniform(0.5, 1.5)]),
        bandwidth=rng.choice([1.0, 10.0, 100.0]),
        microbatches=rng.choice([1, 2, 4, 6, 12, 60]),
    )


def random_net(rng: random.Random, num_nodes: int) -> PiperNet:
    """A graph whose nodes stand in any order in the file.

    A node's choices move the same bytes in two nets out of three.
    """
    whole = rng.random() < 0.6

    def number(most: float) -> float:
        return float(rng.randint(0, int(most))) if whole else rng.uniform(0, most)

    places = list(range(num_nodes))
    rng.shuffle(places)
    edges = tuple(
        PiperEdge(places[u], places[v], number(6))
        for v in range(num_nodes)
        for u in range(v)
        if rng.random() < (0.9 if u == v - 1 else 0.3)
    )
    alike = rng.random() < 2 / 3
    nodes = [
        PiperNode(100 + 3 * v, f"n{v}", _choices(rng, number, _ends(edges, v), alike))
        for v in range(num_nodes)
    ]
    return PiperNet(tuple(nodes), edges)


def _ends(edges, v):
    return [e.source for e in edges if e.target == v], [e.target for e in edges if e.source == v]


def _choices(rng, number, ends, alike):
    found = {}
    for width in (1, 2, 3):
        if width > 1 and rng.random() < 0.4:
            continue
        first = PiperChoice(
            "vanilla",
            number(20) / width + 0.1,
            number(10),
            number(10),
            number(5),
            {u: number(4) for u in ends[0]},
            {x: number(4) for x in ends[1]},
        )
        found[width] = (first,)
        if rng.random() < 0.8:
            kept = rng.choice([0, 0.5, 1, rng.random()])
            more = rng.choice([0, first.stash_bytes * (1 - kept), number(3)])
            second = first._replace(
                name="activation recomp",
                time=first.time + number(5) - rng.choice([0, 0, 0.05]),
                stash_bytes=first.stash_bytes * kept,
                state_bytes=first.state_bytes + more,
            )
            if not alike:
                second = second._replace(
                    weight_bytes=number(10),
                    receive_bytes={u: number(4) for u in ends[0]},
                    send_bytes={x: number(4) for x in ends[1]},
                )
            found[width] += (second,)
    return found
