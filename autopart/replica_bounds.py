"""A lower bound on the step of every plan whose stages have replicas of their own, on any ranks.

Symbols   [i, j]  the stage between two cuts of N, with its place in the pipeline left open
          r       its ranks, of G in all; m microbatches of a step; n = ceil(m / r) those of its first rank
          f, b    its forward and backward seconds for one microbatch, with an action's fixed cost each
          F, B    forward and backward seconds of all layers ahead of cut i;  T  of the whole model
          u       update of a first stage;  e  ranks that can be behind at most

Whatever the other stages and their ranks are, a step with this stage takes at least

    F + n (f + b) + max(B + u, sync + update)                                                    (1)
    1F1B    T + (n - y) (f + b) + (y - 1) max(f, b) + u,    y = min(ceil(e / r) + 1, n)          (2)
    GPipe   T + max((n - 1) max(f, b), p f + (n - 1) b) + u,    p = floor((m - e) / r)           (3)

with its own sends over the better link, and a sync over r ranks by the link within a node if they fit
there. (1) is one rank's work between the first microbatch's way to it and the last one's way back. (2) is
one microbatch's whole way and what the rank must do before and behind it, which is least where it holds
the most. (3): the last stage's first rank starts no backward before its last forward, of a microbatch
that is number m - e or later, so behind p forwards more of a rank of the stage; then comes the first
microbatch's way back, and n - 1 backwards more of the stage's first rank.

To take less than a value, each stage must have its bounds below it. The fewest ranks ahead of each cut
and behind it are then

    A(first) = 0,   A(j) = min { A(i) + r : the bounds of [i, j] on r are below the value }
    G(last) = 0,    G(i) = min { r + G(j) : they are, and memory allows it }

where e = G - A(i) - r, and memory is asked with the microbatches in flight that G(j) ranks behind call
for: both favour the stage over any plan. If G(first) exceeds the ranks there are, under each schedule, no
plan takes less than the value. Bisection finds the largest such value; one evaluation checks it. Where
GPUs differ, [i, j] runs on the r ranks ahead of the last G(j), with their slowest speed and smallest
memory, and ranks may be passed over; A takes the fastest. O(N² G) for each distinct G(j).
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


class Parts(NamedTuple):
    """What the bounds of all stages on so many ranks are made of, matrices of shape (N, N)."""

    alone: Number
    """(1), infinite where there is no stage."""
    way: Number
    """T and the sends and the update that lie on the way."""
    busy_f: Number
    busy_b: Number


class ReplicaBounds:
    """The bounds (1) to (3) of a problem's stages."""

    def __init__(self, problem: Problem, cuts: Cuts) -> None:
        self.problem, self.cuts = problem, cuts
        self.gpus, self.m = num_gpus(problem.cluster), problem.num_microbatches
        self.counts = range(1, min(self.gpus, self.m) + 1)
        groups = msgspec.structs.replace(problem.demands, pins=())
        self.may: Number = allowed(cuts, problem.graph, groups, 0)
        self._kept: dict[tuple[int, float], Parts] = {}

    def bound(self, schedule: str, count: int, speed: float, ahead: Number) -> Number:
        """Seconds that no step with [i, j] on `count` ranks can beat, shape (N, N), with at least
        `ahead` ranks ahead of each cut i (one number, or an array of them)."""
        parts = self._parts(count, speed)
        own = math.ceil(self.m / count)
        most_behind = np.maximum(self.gpus - count - ahead, 0)
        f, b = parts.busy_f, parts.busy_b
        if schedule == "gpipe":
            passed = np.clip((self.m - most_behind) // count, 0, own - 1)
            others = np.maximum((own - 1) * f, _down(passed) * f + (own - 1) * b)
        else:
            held = _down(np.minimum(-(-most_behind // count) + 1, own))
            others = (own - held) * (f + b) + (held - 1) * np.maximum(f, b)
        return np.maximum(parts.alone, parts.way + others)

    def _parts(self, count: int, speed: float) -> Parts:
        key = count, speed
        if key in self._kept:
            return self._kept[key]
        found = self._made(count, speed)
        if 4 * (len(self._kept) + 1) * found.alone.size <= KEPT_ENTRIES:
            self._kept[key] = found
        return found

    def _made(self, count: int, speed: float) -> Parts:
        cluster, loads = self.problem.cluster, slowed(self.cuts.loads, speed)
        o, own, fast = cluster.action_overhead, math.ceil(self.m / count), fastest_speed(cluster)
        into, back_out = self._best_times(self.cuts.loads.received)
        out, back_in = self._best_times(self.cuts.loads.sent)
        f, b = loads.forward_time + o, loads.backward_time + o
        forward, backward = self.cuts.loads.forward_time[0], self.cuts.loads.backward_time[0]
        later = np.arange(len(forward)) > 0
        ahead_f, ahead_b = ((part / fast + o * later)[:, None] for part in (forward, backward))
        rest = (forward[-1] + backward[-1] - forward - backward) / fast + 2 * o * later[::-1]
        first = self.cuts.loads.update_time[0, 1:].min() / fast
        way = ahead_f + ahead_b + into + f + out + rest[None, :] + back_in + b + back_out + first
        busy_f, busy_b = f, b
        if not cluster.sends_overlap:
            busy_f, busy_b = f + into + out, b + back_in + back_out
        else:
            ahead_f, ahead_b = ahead_f + into, ahead_b + back_out
        after = loads.update_time + all_reduce_time(self._sync_link(count), loads.grad_bytes, count)
        alone = ahead_f + own * (busy_f + busy_b) + np.maximum(ahead_b + first, after)
        return Parts(np.where(self.may, alone, np.inf), way, busy_f, busy_b)

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

    def fits(self, schedule: str, count: int, behind: Number, limit: int) -> Number:
        """Whether [i, j] on `count` ranks can fit into `limit` bytes, with at least `behind` ranks
        behind it; `behind` is a number or an array over j."""
        own = math.ceil(self.m / count)
        held: Number = own
        if schedule == "1f1b":
            held = np.minimum(-(-behind // count) + 1, own)
        return total(memory(self.cuts.loads, self.problem, own, held)) <= limit


def _down(values: Number) -> Number:
    """A number for each row of a matrix."""
    return values[:, None] if np.ndim(values) else values


def ranks_ahead(bounds: ReplicaBounds, schedule: str, value: float) -> Number:
    """The fewest ranks ahead of each cut with bounds below `value` for every stage there."""
    speed, limit = fastest_speed(bounds.problem.cluster), largest_memory(bounds.problem.cluster)
    size = len(bounds.cuts.nested)
    ahead = np.full(size, bounds.gpus + 1)
    ahead[0] = 0
    for before in range(bounds.gpus):
        starts = np.flatnonzero(ahead == before)
        if len(starts) == 0:
            continue
        for count in bounds.counts:
            if count > bounds.gpus - before:
                break
            below = bounds.bound(schedule, count, speed, before)[starts] < value
            ends = (below & bounds.fits(schedule, count, 0, limit)[starts]).any(axis=0)
            ahead[ends] = np.minimum(ahead[ends], before + count)
    return ahead


class _Below:
    """Which stages have bounds below a value under a schedule."""

    def __init__(self, bounds: ReplicaBounds, schedule: str, value: float) -> None:
        self.bounds, self.schedule, self.value = bounds, schedule, value
        self.ahead = ranks_ahead(bounds, schedule, value)
        self._kept: dict[tuple[int, float], Number] = {}

    def of(self, count: int, speed: float) -> Number:
        """Boolean, shape (N, N)."""
        key = count, speed
        if key not in self._kept:
            bound = self.bounds.bound(self.schedule, count, speed, self.ahead)
            self._kept[key] = bound < self.value
        return self._kept[key]


def fewest_ranks(bounds: ReplicaBounds, schedule: str, value: float) -> tuple[Needs, ...]:
    """The fewest ranks behind each cut with bounds below `value` for every stage: in any number of
    stages, or, where the user demands a number of stages, in 0, 1, 2, … up to that many."""
    stages = bounds.problem.demands.num_stages
    below, needs = _Below(bounds, schedule, value), _nothing_behind(bounds)
    if stages is None:
        if below.ahead[-1] <= bounds.gpus:
            _add_a_stage(below, needs, needs)
        return (needs,)
    found = [needs]
    for _ in range(stages):
        more = _nothing_behind(bounds)
        more.ranks[-1] = bounds.gpus + 1
        _add_a_stage(below, needs, more)
        found.append(more)
        needs = more
    return tuple(found)


def _nothing_behind(bounds: ReplicaBounds) -> Needs:
    size = len(bounds.cuts.nested)
    needs = Needs(np.full(size, bounds.gpus + 1), np.zeros(size, int), np.zeros(size, int))
    needs.ranks[-1] = 0
    return needs


def _add_a_stage(below: _Below, behind: Needs, needs: Needs) -> None:
    """Lower `needs` to those of one stage ahead of what `behind` says; of any number of stages where
    both are one, since ranks are settled in their order."""
    bounds = below.bounds
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
            into = _stages_into(below, later, count, ends, behind=0 if mixed else later)
            better = into.any(axis=1) & (later + count < needs.ranks)
            needs.ranks[better] = later + count
            needs.counts[better] = count
            needs.ends[better] = ends[into[better].argmax(axis=1)]


def _stages_into(below: _Below, later: int, count: int, ends: Number, behind: int) -> Number:
    bounds = below.bounds
    cluster, last = bounds.problem.cluster, bounds.gpus - later
    window = range(last - count, last)
    into = below.of(count, slowest_speed(cluster, window))[:, ends]
    if not into.any():
        return into
    limit = smallest_memory(cluster, window)
    return into & bounds.fits(below.schedule, count, behind, limit)[:, ends]


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
    return all(
        fewest_ranks(bounds, schedule, value)[-1].ranks[0] > bounds.gpus
        for schedule in bounds.problem.demands.schedules
    )


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
    """Replicas of the stages, for all stages of which some cuts have bounds below `value` under some
    schedule, each once."""
    seen: set[tuple[int, ...]] = set()
    for schedule in sorted(bounds.problem.demands.schedules):
        needs = fewest_ranks(bounds, schedule, value)
        if needs[-1].ranks[0] <= bounds.gpus:
            start = np.zeros(len(needs[0].ranks), dtype=bool)
            start[0] = True
            for counts in _Longer(bounds, schedule, value, needs).than(start, ()):
                if counts not in seen:
                    seen.add(counts)
                    yield counts


class _Longer(NamedTuple):
    """Replicas that are listed stage by stage."""

    bounds: ReplicaBounds
    schedule: str
    value: float
    needs: tuple[Needs, ...]

    def than(self, reached: Number, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """All that begin with `counts`, which may end at the cuts `reached`."""
        bounds, cluster, used = self.bounds, self.bounds.problem.cluster, sum(counts)
        left = bounds.gpus - used
        behind = self.needs[max(0, len(self.needs) - 2 - len(counts))].ranks
        least = np.zeros_like(behind) if cluster.gpus else behind
        limit, speed = largest_memory(cluster), fastest_speed(cluster)
        for count in bounds.counts:
            if count > left:
                break
            below = bounds.bound(self.schedule, count, speed, used)[reached] < self.value
            fits = bounds.fits(self.schedule, count, least[None, :], limit)[reached]
            ends = (below & fits).any(axis=0) & (behind <= left - count)
            if ends[-1]:
                yield (*counts, count)
            ends[-1] = False
            if ends.any():
                yield from self.than(ends, (*counts, count))
