"""Lower bounds on the step time: closed forms that no schedule of a partition can beat.

Symbols   k stages, r replicas of stage s (from 0), m microbatches that its first rank runs, which are
          no fewer than its others run; o the fixed cost of an action
          f, b      forward and backward seconds of stage s, with o
          F, B      forward and backward seconds of all layers ahead of the stage
          T         forward and backward of the whole model and every stage's o
          y         in flight: microbatches past F and before B on the stage
          S         all sends of one microbatch, there and back: the stage's own two cuts exactly,
                    the other cuts at their cheapest

Each bound follows one chain of actions that must wait for each other. Stage s between cuts i and j:

    fill, all its work, drain or sync   F + s o + m (f + b) + max(B + s o, sync + update)           (1)
    one microbatch's whole way, and the stage's other actions that must lie before or behind it:
        GPipe, all stages as many r     T + S + (m - 1) (f + b)                                     (2)
        1F1B                            T + S + (m - y) (f + b) + (y - 1) max(f, b)                 (3)
    d turns, each down from the stage and back, y microbatches apart (1F1B, d = floor(m / y)):
                                        F + B + sends ahead + d (f + b + below) + the actions left  (4)
    a link that queues q sends          T + S + (q - 1) max(send, send back)                        (5)

(3) holds for any schedule with y = m. A link from a stage of r to one of r' ranks carries
q = ceil(microbatches / lcm(r, r')) sends. Where GPUs differ, a stage takes the speed of its slowest rank,
and the layers ahead and behind that of the fastest stage there.

Where layers may be recomputed or offloaded, f and b have the extra seconds of the stage's choice in its place
(autopart/treated.py), and F, B, T and what is below have the fewest extra seconds of all stages ahead and
behind: the shortest paths over the cuts.

(1)-(5) come with the sends on the way added to each, and stage 0's sync and update behind (2)-(5) and behind the
drain. All depend on s, i and j only, so no partition of a layout is faster than the smallest
possible largest bound of a stage, and any partition that is faster than a value has only stages whose
bounds are below it. `paths_below` lists those; where none is left, the value is proven.

Whatever the order of the graph's layers, for a shape (k, r) of these two schedules:

    step >= T' / (1 - (1 - 1/m)^k)       every stage fills at most what (1) leaves; T' without o     (6)
    step >= m (f + b)_l + the (f + b) of all layers ahead of l, for each layer l                     (7)
    step >= T' + (m - 1) max(f, b)_l     for each layer l                                            (8)
    k * memory >= all state + all that is kept inside + k * reserve                                  (9)
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autopart.cluster import (
    Link,
    fastest_speed,
    largest_memory,
    slowest_link,
    slowest_speed,
)
from autopart.cost import (
    all_reduce_time,
    cut_links,
    fits_on_ranks,
    gradient_bytes,
    in_flight,
    links_around,
    on_ranks,
    time_after_backward,
    traffic_times,
    update_share,
)
from autopart.cuts import Cuts, allowed, count_inside
from autopart.graph import edges, positions
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.stage_load import Number, StageLoad
from autopart.training import state_bytes
from autopart.treated import treated
from autopart.ways import leaves_choice, most_freed, places_of_state


def shape_bound(problem: Problem, num_stages: int, num_replicas: int) -> float | None:
    """Seconds that no plan of a shape can beat, by (6)-(8); None where (9) says it cannot fit."""
    return shape_bounds(problem, [(num_stages, num_replicas)])[num_stages, num_replicas]


def shape_bounds(
    problem: Problem, shapes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float | None]:
    """`shape_bound` of several shapes, with what they share computed once."""
    layers = problem.graph.layers
    speed = fastest_speed(problem.cluster)
    halves = [
        (la.forward_time / speed, (la.input_grad_time + la.weight_grad_time) / speed)
        for la in layers
    ]
    work = [f + b for f, b in halves]
    ahead = (ancestors(problem) @ np.array(work)).tolist()
    half = max(max(pair) for pair in halves)
    fixed = 2 * problem.cluster.action_overhead
    usable = largest_memory(problem.cluster) - problem.cluster.reserve_bytes
    needed = {r: _least_bytes(problem, r) for r in {r for _, r in shapes}}

    def bound(k: int, r: int) -> float | None:
        if needed[r] > k * usable:
            return None
        m = math.ceil(problem.num_microbatches / r)
        fills = sum(work) / (1 - (1 - 1 / m) ** k)
        behind = max(m * t + before for t, before in zip(work, ahead, strict=True))
        return max(fills, behind, sum(work) + (m - 1) * half) + m * fixed

    return {(k, r): bound(k, r) for k, r in shapes}


def ancestors(problem: Problem) -> Number:
    """Boolean, shape (n, n): whether layer u lies ahead of layer w, at [w, u]."""
    n = len(problem.graph.layers)
    ahead = np.zeros((n, n), dtype=bool)
    for u, w in sorted(edges(problem.graph), key=lambda edge: edge[1]):
        ahead[w] |= ahead[u]
        ahead[w, u] = True
    return ahead


def _least_bytes(problem: Problem, replicas: int) -> int:
    """State of the whole model, each tied parameter once, and one microbatch's inner stash."""
    graph, training = problem.graph, problem.training
    spare = [(t, len(set(t.layers)) - 1) for t in graph.tied]
    weights = sum(la.param_bytes + la.buffer_bytes for la in graph.layers)
    weights -= sum(t.param_bytes * copies for t, copies in spare)
    gradients = sum(gradient_bytes(la, training) for la in graph.layers)
    gradients -= sum(gradient_bytes(t, training) * copies for t, copies in spare)
    trained = sum(la.num_trainable for la in graph.layers)
    trained -= sum(t.num_trainable * copies for t, copies in spare)
    stepped = -(-trained // update_share(training, replicas))
    on_host = True in places_of_state(problem.demands)
    state = 0 if on_host else stepped * state_bytes(training)
    kept = sum(la.stash_bytes for la in graph.layers) - sum(most_freed(graph, problem.demands))
    inner = kept + sum(v.bytes for v in graph.values if v.kept_by)
    return weights + gradients + state + inner


def stage_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> list[Number]:
    """For each stage of a layout the bounds (1)-(5) of every stage [i, j] between two of N
    cuts, as matrices of shape (N, N); infinite where that is no stage, breaks a pin, or
    does not fit into memory."""
    fitting = _fitting(problem, layout, cuts)
    if len(fitting) < len(layout.stage_ranks):
        return [np.full(cuts.nested.shape, np.inf)] * len(layout.stage_ranks)
    links = cut_links(problem.cluster, layout.stage_ranks)
    cheapest = [cheapest_sends(cuts.loads, link) for link in links]
    extras = _least_extras(problem, layout, cuts, fitting)
    bounds: list[Number] = []
    for stage, fits in enumerate(fitting):
        paths = _Paths(problem, layout, cuts, stage, links, cheapest, extras[stage])
        bounds.append(np.where(fits, paths.longest(in_flight(layout, stage)), np.inf))
    return bounds


def _fitting(problem: Problem, layout: Layout, cuts: Cuts) -> list[Number]:
    """For each stage the [i, j] that may be it and fit; no more once no path of such stages goes on."""
    found: list[Number] = []
    reached = np.arange(len(cuts.nested)) == 0
    for stage in range(len(layout.stage_ranks)):
        loads = treated(problem, layout, cuts, stage)
        may = allowed(cuts, problem.graph, problem.demands, stage)
        fits = may & fits_on_ranks(loads, problem, layout, stage)
        reached = fits[reached].any(axis=0)
        if not reached.any():
            break
        found.append(fits)
    return found


def cheapest_sends(loads: StageLoad, link: Link | None) -> tuple[float, float]:
    """Seconds of the activations' and the gradients' way over the cheapest cut, on `link`."""
    forward, backward = traffic_times(loads.sent, link)
    return float(forward[0, 1:-1].min()), float(backward[0, 1:-1].min())


class _Extra(NamedTuple):
    """Seconds that the ways of layers add, for a stage [i, j] in its place."""

    ahead: Number
    """At least, over all stages ahead of cut i, shape (N, 1); infinite where none of them fit."""
    own: Number
    behind: Number
    """At least, over all stages behind cut j, shape (1, N)."""


class _Extras(NamedTuple):
    """What the ways of layers add to the forwards, to the backwards, and to both together."""

    forward: _Extra
    backward: _Extra
    both: _Extra


def _least_extras(
    problem: Problem, layout: Layout, cuts: Cuts, fitting: Sequence[Number]
) -> list[_Extras]:
    """For each stage of a layout what the ways of layers add, where the [i, j] of `fitting` may be it."""
    k = len(layout.stage_ranks)
    if not leaves_choice(problem.demands):
        nothing = _Extra(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
        return [_Extras(nothing, nothing, nothing)] * k
    forward: list[Number] = []
    backward: list[Number] = []
    for stage in range(k):
        loads = treated(problem, layout, cuts, stage)
        loads, plain = (on_ranks(own, problem, layout, stage) for own in (loads, cuts.loads))
        for more, own, was in (
            (forward, loads.forward_time, plain.forward_time),
            (backward, loads.backward_time, plain.backward_time),
        ):
            more.append(np.where(fitting[stage], own - was, np.inf))
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    found = (_along_the_cuts(own) for own in (forward, backward, both))
    return [_Extras(*own) for own in zip(*found, strict=True)]


def _along_the_cuts(own: list[Number]) -> list[_Extra]:
    """`_Extra` of each stage, by two shortest paths over the cuts: one from the first to cut i in as many
    stages as are ahead, one from cut j to the last."""
    k, size = len(own), len(own[0])
    ahead, behind = [np.full(size, np.inf)], [np.full(size, np.inf)]
    ahead[0][0] = behind[0][-1] = 0.0
    for stage in range(k - 1):
        ahead.append((ahead[-1][:, None] + own[stage]).min(axis=0))
        behind.append((own[k - 1 - stage] + behind[-1][None, :]).min(axis=1))
    behind.reverse()
    return [
        _Extra(a[:, None], more, b[None, :]) for a, more, b in zip(ahead, own, behind, strict=True)
    ]


class _Paths:
    """The chains of waiting actions through one stage, for all its intervals at once."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        cuts: Cuts,
        stage: int,
        links: Sequence[Link | None],
        cheapest: Sequence[tuple[float, float]],
        extras: _Extras,
    ) -> None:
        loads = on_ranks(treated(problem, layout, cuts, stage), problem, layout, stage)
        self.k, self.m, self.stage = len(layout.stage_ranks), own_microbatches(layout, stage), stage
        self.schedule, self.overlap = layout.schedule, problem.cluster.sends_overlap
        counts = [len(ranks) for ranks in layout.stage_ranks]
        self.equal = len(set(counts)) == 1
        turns = math.lcm(*counts[stage : stage + 2])
        self.queued = math.ceil(layout.num_microbatches / turns)
        self.o = o = problem.cluster.action_overhead
        before, after = links_around(links, stage)
        self.into, self.back_out = traffic_times(loads.received, before)
        self.out, self.back_in = traffic_times(loads.sent, after)
        farther = cheapest[: max(0, stage - 1)]
        self.fill_sends = sum(forward for forward, _ in farther)
        self.drain_sends = sum(backward for _, backward in farther)
        self.below_sends = sum(f + b for f, b in cheapest[stage + 1 :])
        self.f, self.b = loads.forward_time + o, loads.backward_time + o
        forward, backward = cuts.loads.forward_time[0], cuts.loads.backward_time[0]
        speeds = [slowest_speed(problem.cluster, ranks) for ranks in layout.stage_ranks]
        ahead, behind = max(speeds[:stage], default=1.0), max(speeds[stage + 1 :], default=1.0)
        self.ahead_f = forward[:, None] / ahead + stage * o + extras.forward.ahead
        self.ahead_b = backward[:, None] / ahead + stage * o + extras.backward.ahead
        after_j = (forward[-1] - forward + backward[-1] - backward)[None, :]
        self.below = after_j / behind + 2 * (self.k - 1 - stage) * o + extras.both.behind
        self.whole = (forward[-1] + backward[-1]) / speeds[0] + 2 * self.k * o
        self.whole = self.whole + extras.both.ahead + extras.both.own + extras.both.behind
        if len(set(speeds)) > 1:
            self.whole = self.ahead_f + self.ahead_b + self.f + self.b + self.below
        self.after, self.after_first = _after(problem, layout, cuts, stage)

    def longest(self, held: int) -> Number:
        busy_f, busy_b = self.f, self.b
        if not self.overlap:
            busy_f = busy_f + self.into + self.out
            busy_b = busy_b + self.back_in + self.back_out
        m = self.m
        way = self.whole + self.fill_sends + self.drain_sends + self.below_sends
        way = way + self.into + self.back_out + self.out + self.back_in
        if self.schedule == "gpipe" and self.equal:
            others = (m - 1) * (busy_f + busy_b)
        else:
            others = (m - held) * (busy_f + busy_b) + (held - 1) * np.maximum(busy_f, busy_b)
        longest = way + others
        if self.overlap:
            longest = np.maximum(
                longest, way + (self.queued - 1) * np.maximum(self.out, self.back_in)
            )
        if self.schedule == "1f1b" and m // held > 1:
            longest = np.maximum(longest, self._turns(m // held, held, busy_f, busy_b))
        return np.maximum(longest + self.after_first, self._alone(busy_f + busy_b))

    def _alone(self, busy: Number) -> Number:
        """(1); where sends do not overlap, the hops next to the stage are part of its work."""
        fill, drain = self.ahead_f + self.fill_sends, self.ahead_b + self.drain_sends
        if self.overlap:
            fill, drain = fill + self.into, drain + self.back_out
        return fill + self.m * busy + np.maximum(drain + self.after_first, self.after)

    def _turns(self, turns: int, held: int, busy_f: Number, busy_b: Number) -> Number:
        """(4)."""
        turn = self.f + self.b + self.below + self.out + self.back_in + self.below_sends
        around = self.ahead_f + self.ahead_b + self.fill_sends + self.drain_sends
        left = (self.m - (turns - 1) * held - 1) * busy_b + (self.m - turns * held) * busy_f
        return around + self.into + self.back_out + turns * turn + left


def _after(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> tuple[Number, Number]:
    """Seconds of sync and update behind the last backward: of the stage itself by [i, j], and of
    stage 0 at least, when stage `stage` starts at layer i."""
    own = _sync_and_update(problem, layout, cuts, stage)
    if stage == 0:
        return own, own
    first = _sync_and_update(problem, layout, cuts, 0)[0]
    if stage == 1:
        return own, first[:, None]
    least = np.full_like(first, first[1:].min())
    return own, least[:, None]


def _sync_and_update(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> Number:
    loads = on_ranks(treated(problem, layout, cuts, stage), problem, layout, stage)
    ranks = layout.stage_ranks[stage]
    link = slowest_link(problem.cluster, ranks)
    behind = time_after_backward(loads, problem.training, link, len(ranks))
    others = [own for at, own in enumerate(layout.stage_ranks) if at != stage]
    place = positions(problem.graph)
    for tied in problem.graph.tied:
        spots = sorted({place[name] for name in tied.layers})
        moved = gradient_bytes(tied, problem.training)
        rings = [
            all_reduce_time(slowest_link(problem.cluster, both), moved, len(both))
            for both in ((*ranks, *other) for other in others)
        ]
        inside = count_inside(cuts.ahead, spots)
        shared = (inside > 0) & (inside < len(spots))
        behind = behind + shared * min(rings, default=0.0)
    return behind


TOGETHER = 1024
"""Beginnings of paths that are continued at once."""


def paths_below(bounds: Sequence[Number], seconds: float) -> Iterator[tuple[int, ...]]:
    """Every path over the cuts whose stages all have a bound below `seconds`."""
    allowed = [bound < seconds for bound in bounds]
    last = allowed[0].shape[0] - 1
    ends = [np.zeros(last + 1, dtype=bool) for _ in range(len(bounds) + 1)]
    """ends[s][i]: whether stages s … can still go from cut i to the last."""
    ends[-1][last] = True
    for stage in reversed(range(len(bounds))):
        allowed[stage] &= ends[stage + 1][None, :]
        ends[stage] = allowed[stage].any(axis=1)
    begun = [np.zeros((int(ends[0][0]), 1), dtype=np.int64)]
    while begun:
        paths = begun.pop()
        stage = paths.shape[1] - 1
        if stage == len(bounds):
            yield from map(tuple, paths.tolist())
        elif len(paths) > TOGETHER:
            begun += [paths[TOGETHER:], paths[:TOGETHER]]
        else:
            which, end = np.nonzero(allowed[stage][paths[:, -1]])
            begun.append(np.hstack([paths[which], end[:, None]]))
