"""Chains whose layers must be recomputed, or few microbatches in flight, to fit into memory."""

import random
from typing import NamedTuple

import msgspec

from autopart.errors import InfeasibleError
from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import Layer, Recompute
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile


class ShortOfMemory(NamedTuple):
    """A chain on a few GPUs."""

    given: Profile
    machine: Cluster
    num_microbatches: int

    def solved(self, schedule: str) -> Plan:
        """The plan in one pipeline that may recompute."""
        return solve(
            self.given,
            self.machine,
            num_microbatches=self.num_microbatches,
            num_replicas=1,
            schedule=schedule,
            recompute="auto",
        )


def short_of_memory(seed: int) -> ShortOfMemory:
    """A random chain on 2 to 4 GPUs with about the least memory in which 1F1B fits."""
    rng = random.Random(f"chains {seed}")
    count, ranks, microbatches = rng.randint(4, 8), rng.randint(2, 4), rng.choice([2, 3, 4, 6, 8])
    even = rng.random() < 0.4
    layers = [_layer(rng, at, even=even) for at in range(count)]
    graph = chain_graph(*layers, num_bytes=rng.choice([1, 5, 20]))
    link = Link(bandwidth=rng.choice([20.0, 100.0, 1e6]))
    tiny = cluster(1, ranks, intra_node=link, memory_bytes=1)
    asked = ShortOfMemory(profile(graph), tiny, microbatches)
    try:
        asked.solved("1f1b")
    except InfeasibleError as error:
        assert error.least_bytes is not None
        enough = int(error.least_bytes * rng.choice([1.0, 1.1, 1.3, 1.7]))
        return asked._replace(machine=msgspec.structs.replace(tiny, memory_bytes=enough))
    raise AssertionError("one byte is enough")


def _layer(rng: random.Random, at: int, *, even: bool) -> Layer:
    seconds = 4.0 if even else rng.uniform(1, 6)
    stash = 100 if even else rng.randint(20, 150)
    return layer(
        f"l{at}",
        forward_time=seconds,
        input_grad_time=seconds * rng.choice([1, 1.0, 1.3]),
        weight_grad_time=seconds * rng.choice([0.7, 1.0]),
        stash_bytes=stash,
        recompute=Recompute(extra_time=seconds, stash_bytes=rng.choice([0, 0, stash // 5])),
        param_bytes=rng.choice([0, 40]),
    )
