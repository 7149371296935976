"""A lower bound on the step of every plan whose stages have replicas of their own, on any ranks.

Symbols   [i, j]  the stage between two cuts of N, with its place in the pipeline left open
          r       its ranks, of G in all; m microbatches of a step; n = ceil(m / r) those of its first rank
          f, b    its forward and backward seconds for one microbatch, with an action's fixed cost each
          F, B    forward and backward seconds of all layers ahead of cut i;  T  of the whole model

Whatever the other stages, their ranks and the schedule are, a step with this stage takes at least

    F + n (f + b) + max(B + update of a first stage, sync + update)                              (1)
    T + (n - 1) max(f, b) + update of a first stage                                              (2)

with its own sends over the better link, and a sync over r ranks by the link within a node if they fit
there. (1) is one rank's work between the first microbatch's way to it and the last one's way back; (2)
one microbatch's whole way, the first or the last of the rank. To take less than a value, each stage
must have a bound below it, so it needs at least the least such r. The fewest ranks behind each cut are

    G(last) = 0,   G(i) = min { r + G(j) : a bound of [i, j] on r below the value, memory allows it }

where memory is asked with the microbatches in flight that G(j) ranks behind call for, no more than a
plan's own. If G(0) exceeds the ranks there are, no plan takes less than the value. Bisection finds the
largest such value; one evaluation checks it. Where GPUs differ, [i, j] runs on the r ranks ahead of the
last G(j), with their slowest speed and smallest memory, and ranks may be passed over.
O(N² G) for each distinct G(j).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.cluster import (
    Link,
    fastest_speed,
    largest_memory,
    num_gpus,
    slowest_speed,
    smallest_memory,
)
from autopart.cost import all_reduce_time, memory, slowed, total, traffic_times
from autopart.cuts import Cuts, allowed
from autopart.problem import Problem
from autopart.stage_load import Number, Traffic

BISECTIONS = 40
"""Halvings of the interval in which the bound lies."""

MOST_COUNTS = 1000
"""Lists of replicas that are looked at one by one to close what the bound leaves open."""

KEPT_ENTRIES = 1 << 25
"""Matrix entries of bounds that are kept for the next value: 256 MB."""


class Needs(NamedTuple):
    """For each cut the fewest ranks that everything behind it takes."""

    ranks: Number
    """Integers, more than there are GPUs where those are not enough."""
    ends: Number
    """Where the stage from each cut ends, and on how many ranks it runs."""
    counts: Number


class ReplicaBounds:
    """The bounds (1) and (2) of a problem's stages."""

    def __init__(self, problem: Problem, cuts: Cuts) -> None:
        self.problem, self.cuts = problem, cuts
        self.gpus, self.m = num_gpus(problem.cluster), problem.num_microbatches
        self.counts = range(1, min(self.gpus, self.m) + 1)
        groups = msgspec.structs.replace(problem.demands, pins=())
        self.may: Number = allowed(cuts, problem.graph, groups, 0)
        self._kept: dict[tuple[int, float], Number] = {}

    def bound(self, count: int, speed: float) -> Number:
        """Seconds that no step with [i, j] on `count` ranks can beat, shape (N, N)."""
        key = count, speed
        if key in self._kept:
            return self._kept[key]
        found = np.where(self.may, self._bound(count, speed), np.inf)
        if (len(self._kept) + 1) * found.size <= KEPT_ENTRIES:
            self._kept[key] = found
        return found

    def _bound(self, count: int, speed: float) -> Number:
        cluster, loads = self.problem.cluster, slowed(self.cuts.loads, speed)
        o, own, fast = cluster.action_overhead, math.ceil(self.m / count), fastest_speed(cluster)
        into, back_out = self._best_times(self.cuts.loads.received)
        out, back_in = self._best_times(self.cuts.loads.sent)
        f, b = loads.forward_time + o, loads.backward_time + o
        forward, backward = self.cuts.loads.forward_time[0], self.cuts.loads.backward_time[0]
        later = np.arange(len(forward)) > 0
        ahead_f, ahead_b = ((part / fast + o * later)[:, None] for part in (forward, backward))
        rest = (forward[-1] + backward[-1] - forward - backward) / fast + 2 * o * later[::-1]
        way = ahead_f + ahead_b + into + f + out + rest[None, :] + back_in + b + back_out
        busy_f, busy_b = f, b
        if not cluster.sends_overlap:
            busy_f, busy_b = f + into + out, b + back_in + back_out
        else:
            ahead_f, ahead_b = ahead_f + into, ahead_b + back_out
        first = self.cuts.loads.update_time[0, 1:].min() / fast
        after = loads.update_time + all_reduce_time(self._sync_link(count), loads.grad_bytes, count)
        alone = ahead_f + own * (busy_f + busy_b) + np.maximum(ahead_b + first, after)
        return np.maximum(alone, way + (own - 1) * np.maximum(busy_f, busy_b) + first)

    def _best_times(self, traffic: Traffic) -> tuple[Number, Number]:
        cluster = self.problem.cluster
        forward, backward = traffic_times(traffic, cluster.intra_node)
        if cluster.num_nodes == 1:
            return forward, backward
        across = traffic_times(traffic, cluster.inter_node)
        return np.minimum(forward, across[0]), np.minimum(backward, across[1])

    def _sync_link(self, count: int) -> Link:
        """A link that no ring over `count` ranks can beat."""
        cluster = self.problem.cluster
        inside, across = cluster.intra_node, cluster.inter_node
        if cluster.num_nodes == 1:
            return inside
        if count > cluster.gpus_per_node:
            return across
        return Link(
            bandwidth=max(inside.bandwidth, across.bandwidth),
            latency=min(inside.latency, across.latency),
        )

    def fits(self, count: int, behind: Number, limit: int) -> Number:
        """Whether [i, j] on `count` ranks can fit into `limit` bytes, with at least `behind` ranks
        behind it; `behind` is a number or an array over j."""
        own = math.ceil(self.m / count)
        held: Number = own
        if "1f1b" in self.problem.demands.schedules:
            held = np.minimum(-(-behind // count) + 1, own)
        return total(memory(self.cuts.loads, self.problem, own, held)) <= limit


def fewest_ranks(bounds: ReplicaBounds, value: float) -> tuple[Needs, ...]:
    """The fewest ranks behind each cut with bounds below `value` for every stage: in any number of
    stages, or, where the user demands a number of stages, in 0, 1, 2, … up to that many."""
    stages = bounds.problem.demands.num_stages
    needs = _nothing_behind(bounds)
    if stages is None:
        _add_a_stage(bounds, value, needs, needs)
        return (needs,)
    found = [needs]
    for _ in range(stages):
        more = _nothing_behind(bounds)
        more.ranks[-1] = bounds.gpus + 1
        _add_a_stage(bounds, value, needs, more)
        found.append(more)
        needs = more
    return tuple(found)


def _nothing_behind(bounds: ReplicaBounds) -> Needs:
    size = len(bounds.cuts.nested)
    needs = Needs(np.full(size, bounds.gpus + 1), np.zeros(size, int), np.zeros(size, int))
    needs.ranks[-1] = 0
    return needs


def _add_a_stage(bounds: ReplicaBounds, value: float, behind: Needs, needs: Needs) -> None:
    """Lower `needs` to those of one stage ahead of what `behind` says; of any number of stages where
    both are one, since ranks are settled in their order."""
    mixed = bool(bounds.problem.cluster.gpus)
    for later in range(bounds.gpus):
        if needs.ranks[0] <= later:
            break
        ends = np.flatnonzero(behind.ranks <= later if mixed else behind.ranks == later)
        if len(ends) == 0:
            continue
        for count in bounds.counts:
            if count > bounds.gpus - later:
                break
            into = _stages_into(bounds, value, later, count, ends, behind=0 if mixed else later)
            better = into.any(axis=1) & (later + count < needs.ranks)
            needs.ranks[better] = later + count
            needs.counts[better] = count
            needs.ends[better] = ends[into[better].argmax(axis=1)]


def _stages_into(
    bounds: ReplicaBounds, value: float, later: int, count: int, ends: Number, behind: int
) -> Number:
    cluster, last = bounds.problem.cluster, bounds.gpus - later
    window = range(last - count, last)
    below = bounds.bound(count, slowest_speed(cluster, window))[:, ends] < value
    if not below.any():
        return below
    return below & bounds.fits(count, behind, smallest_memory(cluster, window))[:, ends]


def stages_of(needs: tuple[Needs, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A path over the cuts and the replicas of its stages that take no more ranks than needed."""
    path, counts = [0], list[int]()
    last, left = len(needs[0].ranks) - 1, list(needs)
    while path[-1] != last:
        here = left.pop() if len(left) > 1 else left[0]
        counts.append(int(here.counts[path[-1]]))
        path.append(int(here.ends[path[-1]]))
    return tuple(path), tuple(counts)


def proves(bounds: ReplicaBounds, value: float) -> bool:
    """Whether no plan takes less than `value` seconds, by bounds alone."""
    return bool(fewest_ranks(bounds, value)[-1].ranks[0] > bounds.gpus)


def least_value(bounds: ReplicaBounds, most: float) -> float:
    """A value below which no plan is, at most `most`, found by bisection; 0 where there is none."""
    low, high = 0.0, most
    if proves(bounds, most):
        return most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if proves(bounds, middle):
            low = middle
        else:
            high = middle
        if high - low <= 1e-9 * high:
            break
    return low


def missing_bytes(problem: Problem, cuts: Cuts) -> int:
    """The least bytes that every GPU would need more so that some stages on some replicas fit; 0 where
    they do. Pins to numbered stages are not looked at."""
    whole = fits_with(problem, cuts, 0)
    low, high = 0, 1
    while not whole and not fits_with(problem, cuts, high):
        low, high = high, 2 * high
    while not whole and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits_with(problem, cuts, middle) else (middle, high)
    return 0 if whole else high


def fits_with(problem: Problem, cuts: Cuts, more: int) -> bool:
    """Whether some stages on some replicas fit into GPUs with `more` bytes than they have."""
    cluster = problem.cluster
    roomy = msgspec.structs.replace(
        cluster,
        memory_bytes=cluster.memory_bytes + more,
        gpus=tuple(
            msgspec.structs.replace(group, memory_bytes=group.memory_bytes + more)
            for group in cluster.gpus
        ),
    )
    bounds = ReplicaBounds(msgspec.structs.replace(problem, cluster=roomy), cuts)
    return not proves(bounds, math.inf)


def value_in_any_order(problem: Problem) -> float:
    """Seconds that no plan can beat, whatever the order of the graph's layers: all the work spread
    over all GPUs, and one microbatch's whole way."""
    cluster = problem.cluster
    work = sum(
        la.forward_time + la.input_grad_time + la.weight_grad_time for la in problem.graph.layers
    )
    speeds = [slowest_speed(cluster, (rank,)) for rank in range(num_gpus(cluster))]
    return max(problem.num_microbatches * work / sum(speeds), work / max(speeds))


def counts_below(bounds: ReplicaBounds, value: float) -> Iterator[tuple[int, ...]]:
    """Replicas of the stages, for all stages of which some cuts have bounds below `value`."""
    needs = fewest_ranks(bounds, value)
    if needs[-1].ranks[0] <= bounds.gpus:
        start = np.zeros(len(needs[0].ranks), dtype=bool)
        start[0] = True
        yield from _longer(bounds, value, needs, start, ())


def _longer(
    bounds: ReplicaBounds,
    value: float,
    needs: tuple[Needs, ...],
    reached: Number,
    counts: tuple[int, ...],
) -> Iterator[tuple[int, ...]]:
    cluster, left = bounds.problem.cluster, bounds.gpus - sum(counts)
    behind = needs[max(0, len(needs) - 2 - len(counts))].ranks
    least = np.zeros_like(behind) if cluster.gpus else behind
    for count in bounds.counts:
        if count > left:
            break
        below = bounds.bound(count, fastest_speed(cluster))[reached] < value
        fits = bounds.fits(count, least[None, :], largest_memory(cluster))[reached]
        ends = (below & fits).any(axis=0) & (behind <= left - count)
        if ends[-1]:
            yield (*counts, count)
        ends[-1] = False
        if ends.any():
            yield from _longer(bounds, value, needs, ends, (*counts, count))
