"""A lower bound on the step of every plan whose stages have replicas of their own, on any ranks.

Symbols   [i, j]  the stage between two cuts of N, with its place in the pipeline left open
          r       its ranks, of G in all; m microbatches of a step; n = ceil(m / r) those of its first rank
          f, b    its forward and backward seconds for one microbatch, with an action's fixed cost each
          F, B    forward and backward seconds of all layers ahead of cut i;  T  of the whole model
          u       update of a first stage;  e  ranks behind

Whatever the other stages and their ranks are, a step with this stage takes at least

    F + n (f + b) + max(B + u, sync + update)                                                    (1)
    1F1B    T + (n - y) (f + b) + (y - 1) max(f, b) + u,    y = min(ceil(e / r) + 1, n)          (2)
    GPipe   T + max((n - 1) max(f, b), p f + (n - 1) b) + u,    p = floor((m - e) / r)           (3)

with its own sends over the better link, and a sync over r ranks by the link within a node if they fit
there. (1) is one rank's work between the first microbatch's way to it and the last one's way back. (2) is
one microbatch's whole way and what the rank must do before and behind it. (3): the last stage's first
rank, one of at most e there, starts no backward before its last forward, of a microbatch that is number
m - e or later, so behind p forwards more of a rank of the stage; then comes the first microbatch's way
back, and n - 1 backwards more of the stage's first rank.

To take less than a value, each stage must have its bounds below it, and fit. Which cuts can have so many
ranks behind them is then, from the last cut on,

    R(0) = {last},   R(e + r) holds i if R(e) holds a j with [i, j] on r ranks below the value and fitting

If R(e) holds the first cut for no e up to G, under each schedule, no plan takes less than the value.
Bisection finds the largest such value; one evaluation checks it. The microbatches in flight, and with
them the memory, are those of a plan. Where GPUs differ, [i, j] runs on the r ranks ahead of the last e,
with their slowest speed and smallest memory; ranks may be passed over, so R(e) then holds R(e - 1), (2)
and (3) take e for the most that can be behind, and memory is asked as with none behind. O(N² G²), as the
bounds are those of O(G log G) different pairs of r and y.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.cluster import (
    Link,
    fastest_speed,
    host_share,
    num_gpus,
    slowest_speed,
    smallest_memory,
)
from autopart.cost import (
    on_replicas,
    time_after_backward,
    traffic_times,
    update_share,
    within,
)
from autopart.cuts import Cuts, allowed
from autopart.frontier import Limits
from autopart.problem import Problem
from autopart.stage_load import Number, Traffic
from autopart.treated import least_bytes_loads

Path = tuple[int, ...]
Counts = tuple[int, ...]

BISECTIONS = 40
"""Halvings of the interval in which the bound lies."""

MOST_COUNTS = 4000
"""Lists of replicas that are looked at one by one to close what the bound leaves open."""

KEPT_ENTRIES = 1 << 25
"""Matrix entries of bounds that are kept for the next value: 256 MB."""


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

    def bound(self, schedule: str, count: int, speed: float, behind: int) -> Number:
        """Seconds that no step with [i, j] on `count` ranks and at most `behind` ranks behind it can
        beat, shape (N, N)."""
        parts, own = self._parts(count, speed), math.ceil(self.m / count)
        f, b = parts.busy_f, parts.busy_b
        if schedule == "gpipe":
            passed = min(max((self.m - behind) // count, 0), own - 1)
            others = np.maximum((own - 1) * f, passed * f + (own - 1) * b)
        else:
            held = min(-(-behind // count) + 1, own)
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
        cluster, training = self.problem.cluster, self.problem.training
        loads = on_replicas(self.cuts.loads, self.problem, count, speed)
        o, own, fast = cluster.action_overhead, math.ceil(self.m / count), fastest_speed(cluster)
        into, back_out = self._best_times(self.cuts.loads.received)
        out, back_in = self._best_times(self.cuts.loads.sent)
        f, b = loads.forward_time + o, loads.backward_time + o
        forward, backward = self.cuts.loads.forward_time[0], self.cuts.loads.backward_time[0]
        later = np.arange(len(forward)) > 0
        ahead_f, ahead_b = ((part / fast + o * later)[:, None] for part in (forward, backward))
        rest = (forward[-1] + backward[-1] - forward - backward) / fast + 2 * o * later[::-1]
        first = self.cuts.loads.update_time[0, 1:].min() / fast
        first = first / update_share(training, self.counts[-1])
        way = ahead_f + ahead_b + into + f + out + rest[None, :] + back_in + b + back_out + first
        busy_f, busy_b = f, b
        if not cluster.sends_overlap:
            busy_f, busy_b = f + into + out, b + back_in + back_out
        else:
            ahead_f, ahead_b = ahead_f + into, ahead_b + back_out
        after = time_after_backward(loads, training, self._sync_link(count), count)
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

    def fits(self, schedule: str, count: int, behind: int, limit: int) -> Number:
        """Whether [i, j] on `count` ranks with `behind` ranks behind it fits into `limit` bytes."""
        held = math.ceil(self.m / count)
        if schedule == "1f1b":
            held = min(-(-behind // count) + 1, held)
        limits = Limits(held, limit, host_share(self.problem.cluster))
        loads = least_bytes_loads(self.problem, self.cuts, count, limits)
        return within(loads, self.problem, count, limits, limits.held)


class Below:
    """Which stages have bounds below a value under a schedule, and what can be behind which cut."""

    def __init__(self, bounds: ReplicaBounds, schedule: str, value: float) -> None:
        self.bounds, self.schedule, self.value = bounds, schedule, value
        self._kept: dict[tuple[int, int, float, int], Number] = {}
        self.stages = bounds.problem.demands.num_stages
        nothing = np.zeros((bounds.gpus + 1, len(bounds.cuts.nested)), dtype=bool)
        nothing[0, -1] = True
        if bounds.problem.cluster.gpus:
            nothing[:, -1] = True
        self.behind: list[Number] = [nothing]
        """R, with the stages behind as a first index where the user demands their number."""
        if self.stages is None:
            self._add_a_stage(nothing, nothing)
        for _ in range(self.stages or 0):
            more = np.zeros_like(nothing)
            self._add_a_stage(self.behind[-1], more)
            self.behind.append(more)

    def stage(self, count: int, behind: int) -> Number:
        """Boolean, shape (N, N): whether [i, j] on `count` ranks, those ahead of the last `behind`, is
        below the value and fits."""
        bounds, cluster = self.bounds, self.bounds.problem.cluster
        last = bounds.gpus - behind
        window = range(last - count, last)
        speed, limit = slowest_speed(cluster, window), smallest_memory(cluster, window)
        held = (bounds.m - behind) // count if self.schedule == "gpipe" else -(-behind // count)
        key = count, held, speed, limit
        if key not in self._kept:
            below = bounds.bound(self.schedule, count, speed, behind) < self.value
            least = 0 if cluster.gpus else behind
            if below.any():
                below &= bounds.fits(self.schedule, count, least, limit)
            self._kept[key] = below
        return self._kept[key]

    def totals(self) -> list[int]:
        """Numbers of ranks on which all layers can run."""
        return [int(used) for used in np.flatnonzero(self.behind[-1][:, 0])]

    def _add_a_stage(self, behind: Number, more: Number) -> None:
        """Add to `more` the cuts with one stage ahead of those of `behind`; of any number of stages where
        both are one, since ranks are settled in their order."""
        mixed = bool(self.bounds.problem.cluster.gpus)
        for later in range(self.bounds.gpus):
            if mixed and later:
                more[later] |= more[later - 1]
            ends = np.flatnonzero(behind[later])
            for count in self.bounds.counts if len(ends) else ():
                if count > self.bounds.gpus - later:
                    break
                more[later + count] |= self.stage(count, later)[:, ends].any(axis=1)
        if mixed:
            more[-1] |= more[-2] if len(more) > 1 else more[-1]


def proves(bounds: ReplicaBounds, value: float) -> bool:
    """Whether no plan takes less than `value` seconds, by bounds alone."""
    return not any(
        Below(bounds, schedule, value).totals() for schedule in bounds.problem.demands.schedules
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
        below = Below(bounds, schedule, value)
        start = np.zeros(len(bounds.cuts.nested), dtype=bool)
        start[0] = True
        for used in below.totals():
            for counts in _continued(below, start, used, ()):
                if counts not in seen:
                    seen.add(counts)
                    yield counts


def _continued(
    below: Below, reached: Number, left: int, counts: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """All replicas that begin with `counts`, which may end at the cuts `reached`, with the last `left`
    ranks for the stages to come."""
    layer = 0 if below.stages is None else below.stages - len(counts) - 1
    for count in below.bounds.counts:
        if count > left:
            break
        ends = below.stage(count, left - count)[reached].any(axis=0)
        ends &= below.behind[layer][left - count]
        if ends[-1]:
            yield (*counts, count)
        ends[-1] = False
        if ends.any():
            yield from _continued(below, ends, left - count, (*counts, count))


def first_below(bounds: ReplicaBounds, value: float) -> Iterator[tuple[Path, Counts]]:
    """For each schedule one path over the cuts with replicas whose bounds are below `value`."""
    for schedule in bounds.problem.demands.schedules:
        below = Below(bounds, schedule, value)
        totals = below.totals()
        if totals:
            yield _first(below, totals[0])


def _first(below: Below, left: int) -> tuple[Path, Counts]:
    path, counts = [0], list[int]()
    last = len(below.bounds.cuts.nested) - 1
    while path[-1] != last:
        layer = 0 if below.stages is None else below.stages - len(counts) - 1
        for count in below.bounds.counts[:left]:
            ends = below.stage(count, left - count)[path[-1]] & below.behind[layer][left - count]
            if ends.any():
                path.append(int(ends.argmax()))
                counts.append(count)
                left -= count
                break
        else:
            left -= 1
    return tuple(path), tuple(counts)
