"""Random problems whose stages may have different numbers of replicas, and random partitions of them."""

import itertools
import random
from collections.abc import Sequence

import msgspec
import numpy as np

from autopart.cost.cuts import Cuts
from autopart.records.layouts import Partition
from autopart.records.problem import Demands, Problem
from tests.support.problems import random_problem

PER_STAGE = Demands(replicas_per_stage=True)


def uneven_problem(rng: random.Random) -> Problem:
    """A random problem with up to 40 microbatches on up to 24 GPUs."""
    drawn = random_problem(rng, branching=rng.random() < 0.2, tight=False)
    machine = msgspec.structs.replace(
        drawn.cluster, num_nodes=rng.choice([1, 3]), gpus_per_node=rng.choice([3, 5, 8])
    )
    return msgspec.structs.replace(
        drawn, cluster=machine, demands=PER_STAGE, num_microbatches=rng.randint(1, 40)
    )


def random_lists(asked: Problem, rng: random.Random) -> tuple[int, ...]:
    """Random replicas for each stage, as many stages and ranks as there may be."""
    gpus = asked.cluster.num_nodes * asked.cluster.gpus_per_node
    most = rng.randint(1, min(len(asked.graph.layers), gpus))
    counts = [1] * most
    for _ in range(rng.randint(0, gpus - most)):
        counts[rng.randrange(most)] += 1
    return tuple(min(count, asked.num_microbatches) for count in counts)


def random_path(cuts: Cuts, num_stages: int, rng: random.Random) -> tuple[int, ...] | None:
    """Random cuts between so many stages, the ends included; None where the draw left a stage empty."""
    path, sizes = [0], cuts.ahead.sum(axis=1)
    for left in range(num_stages - 1, -1, -1):
        # Each stage behind needs a layer.
        room = cuts.ahead.shape[1] - sizes >= left
        ends = np.flatnonzero(cuts.nested[path[-1]] & room)
        path.append(int(rng.choice(ends)) if left else len(cuts.nested) - 1)
    whole = all(cuts.nested[i, j] for i, j in itertools.pairwise(path))
    return tuple(path) if whole else None


def stages_along(cuts: Cuts, path: Sequence[int]) -> Partition:
    """The partition between the cuts of a path."""
    return tuple(
        tuple(int(place) for place in np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]))
        for i, j in itertools.pairwise(path)
    )
