"""What crosses the cuts and the nodes in a step: activations and gradients, in bytes."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.plan import Plan, stage_ranks
from autopart.records.plan_degrees import gpus_of_ranks, rank_sizes


class CutTraffic(NamedTuple):
    """The messages between a stage and the next one."""

    forward_bytes: int
    """Activation bytes of one microbatch."""
    backward_bytes: int
    """Gradient bytes of one microbatch."""
    between_nodes: int
    """Microbatches per step whose messages go to another node."""
    within_nodes: int
    """Microbatches per step whose messages stay on their node, but leave their rank."""


class Crossings(NamedTuple):
    """The messages of one step."""

    cuts: tuple[CutTraffic, ...]
    """For each cut its messages."""
    nodes: dict[tuple[int, int], int]
    """Bytes per step between two nodes, both directions together; within a node where they are equal."""


def crossings_of(plan: Plan) -> Crossings:
    """The messages of one step, from the bytes of the plan's prediction.

    With a tensor degree the bytes are those of one GPU of a rank, and the first GPU's node counts.
    """
    gpus, per_node = gpus_of_ranks(rank_sizes(plan)), plan.cluster.gpus_per_node
    node = [own.start // per_node for own in gpus]
    cuts: list[CutTraffic] = []
    nodes: Counter[tuple[int, int]] = Counter()
    for (left, right), stage in zip(
        itertools.pairwise(stage_ranks(plan)), plan.prediction.stages[1:], strict=True
    ):
        pairs = _pairs(left, right, plan.num_microbatches)
        moving = stage.moving
        for (one, other), count in pairs.items():
            ends = sorted((node[one], node[other]))
            nodes[ends[0], ends[1]] += count * (moving.activations + moving.sent)
        between = sum(n for (a, b), n in pairs.items() if node[a] != node[b])
        cuts.append(
            CutTraffic(moving.activations, moving.sent, between, sum(pairs.values()) - between)
        )
    return Crossings(tuple(cuts), dict(nodes))


def _pairs(left: Sequence[int], right: Sequence[int], count: int) -> Counter[tuple[int, int]]:
    """The microbatches that go from each rank of a stage to each rank of the next, without those that stay."""
    # Microbatch m runs on rank number m mod (their count), so the pairs repeat.
    turns = math.lcm(len(left), len(right))
    whole, rest = divmod(count, turns)
    pairs: Counter[tuple[int, int]] = Counter()
    for place in range(min(turns, count)):
        ends = left[place % len(left)], right[place % len(right)]
        if ends[0] != ends[1]:
            pairs[ends] += whole + (place < rest)
    return pairs
