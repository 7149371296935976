"""Bounds of every order for all stages between two cuts at once, and for a number of ranks.

A stage [i, j] is taken for itself, as if its rank ran nothing else: that is (1)-(5) and (7)-(11) of
autopart/order_bounds/of_partition.py with a = z. Its own two cuts are exact, sends over the others at their
cheapest, and layers ahead and behind as fast as the fastest stage there. No partition of the layout,
under any order, is faster than the smallest possible largest bound of a stage, so that
`autopart.bounds.paths_below` lists the partitions that may be.

Where the stages are not known, on P ranks in r replicas of a pipeline, n = ceil(microbatches / r):

    step >= microbatches (F + I + W) / P                            all work, shared out        (13)
    step >= F of what is ahead of l + n (f + i + w)_l               for each layer l            (14)
    step >= F of what is ahead of l + n (f + i)_l + I of the same   for each layer l            (15)
    step >= F + I + (n - 1) max(f, i)_l                             for each layer l            (16)

with F, I, W over all layers at the fastest GPU's speed. (16): the first of n backwards of l, or the last
of its forwards, is on the whole way of one microbatch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.bounds import ancestors, cheapest_sends
from autopart.cluster import (
    Link,
    fastest_speed,
    slowest_link,
    slowest_speed,
    smallest_memory,
)
from autopart.cost import (
    cut_links,
    holding_of_one,
    links_around,
    memory,
    on_ranks,
    time_after_backward,
    total,
    traffic_times,
)
from autopart.cuts import Cuts, allowed
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.schedule import rank_of
from autopart.stage_load import Number, StageLoad


def stage_bounds_of_any_order(
    problem: Problem, layout: Layout, cuts: Cuts, *, split: bool
) -> list[Number]:
    """For each stage of a layout the seconds that no order can beat, of every stage [i, j] between two
    of N cuts, shape (N, N); infinite where that is no stage, breaks a pin, or one microbatch does
    not fit. The layout's schedule is not read; `split` says whether backwards may be split."""
    links = [
        link if _always_sent(layout, cut) else None
        for cut, link in enumerate(cut_links(problem.cluster, layout.stage_ranks))
    ]
    bounds: list[Number] = []
    for stage in range(len(layout.stage_ranks)):
        may = allowed(cuts, problem.graph, problem.demands, stage)
        held, fits = _most_in_flight(problem, layout, cuts, stage, split=split)
        way = _way(problem, layout, cuts, stage, links, split=split)
        n = own_microbatches(layout, stage)
        seconds = _alone(way, n)
        fewest = layout.num_microbatches // len(layout.stage_ranks[stage])
        if fewest:
            seconds = np.maximum(seconds, _in_turns(way, fewest, np.minimum(held, fewest)))
        bounds.append(np.where(may & fits, seconds, np.inf))
    return bounds


class _Way(NamedTuple):
    """Matrices over [i, j]: the symbols of the docstring of `of_partition`, and what sends take from a
    rank behind f and i, where they do not overlap."""

    f: Number
    i: Number
    w: Number
    sent: Number
    sent_back: Number
    apart: Number
    """g: between the ends of two backwards."""
    before: Number
    """H."""
    around: Number
    """U + D."""
    out: Number
    """R."""
    after: Number
    """E."""


def _always_sent(layout: Layout, cut: int) -> bool:
    here, there = layout.stage_ranks[cut : cut + 2]
    turns = math.lcm(len(here), len(there))
    return all(rank_of(here, m) != rank_of(there, m) for m in range(turns))


def _most_in_flight(
    problem: Problem, layout: Layout, cuts: Cuts, stage: int, *, split: bool
) -> tuple[Number, Number]:
    """Microbatches whose stash fits beside the state of [i, j], and whether one does: in F, where no message
    need be there."""
    n = own_microbatches(layout, stage)
    limit = smallest_memory(problem.cluster, layout.stage_ranks[stage])
    replicas = len(layout.stage_ranks[stage])
    with_one = total(memory(cuts.loads, problem, replicas, holding_of_one()))
    room = limit - with_one + cuts.loads.stash_bytes
    stash = cuts.loads.stash_bytes
    if split:
        stash = np.minimum(stash, cuts.loads.waiting_bytes)
    held = np.where(stash > 0, room // np.maximum(stash, 1), n)
    return np.maximum(held, 1), with_one <= limit


def _way(
    problem: Problem,
    layout: Layout,
    cuts: Cuts,
    stage: int,
    links: Sequence[Link | None],
    *,
    split: bool,
) -> _Way:
    loads, o = on_ranks(cuts.loads, problem, layout, stage), problem.cluster.action_overhead
    k, overlap = len(layout.stage_ranks), problem.cluster.sends_overlap
    before, behind = links_around(links, stage)
    into, back_out = traffic_times(loads.received, before)
    out, back_in = traffic_times(loads.sent, behind)
    cheapest = [cheapest_sends(cuts.loads, link) for link in links]
    ahead_sends, below_sends = cheapest[: max(0, stage - 1)], cheapest[stage + 1 :]
    forward, gradient = _prefixes(cuts.loads, split=split)
    speeds = [slowest_speed(problem.cluster, ranks) for ranks in layout.stage_ranks]
    ahead, beyond = max(speeds[:stage], default=1.0), max(speeds[stage + 1 :], default=1.0)
    rest = (forward[-1] - forward + gradient[-1] - gradient)[None, :] / beyond
    w = loads.weight_grad_time if split else 0.0 * loads.backward_time
    own, first = _after(problem, layout, cuts, stage)
    f, i = loads.forward_time + o, loads.backward_time - w + o
    fill = forward[:, None] / ahead + stage * o + sum(there for there, _ in ahead_sends)
    around = rest + 2 * (k - 1 - stage) * o + sum(there + back for there, back in below_sends) + out
    drain = gradient[:, None] / ahead + stage * o + sum(back for _, back in ahead_sends)
    # A receive is on the way of a microbatch, beside compute or as a part of the action behind it.
    f, fill = (f, fill + into) if overlap else (f + into, fill)
    i, around = (i, around + back_in) if overlap else (i + back_in, around)
    none = 0.0 * f
    sent, sent_back = (none, none) if overlap else (out, back_out)
    rest_of_first = (w if stage == 0 else 0.0) + first
    return _Way(
        f=f,
        i=i,
        w=w,
        sent=sent,
        sent_back=sent_back,
        apart=w if split else i + sent_back,
        before=fill,
        around=around,
        out=drain + back_out + rest_of_first,
        after=own,
    )


def _prefixes(loads: StageLoad, *, split: bool) -> tuple[Number, Number]:
    """Seconds of f and i of all layers ahead of each cut, at the profile's speed."""
    gradient = loads.backward_time[0] - (loads.weight_grad_time[0] if split else 0.0)
    return loads.forward_time[0], gradient


def _after(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> tuple[Number, Number]:
    """E of the stage by [i, j], and of stage 0 at least, when the stage starts at cut i. Syncs of tied
    parameters come on top and are left out."""

    def own(at: int) -> Number:
        loads, ranks = on_ranks(cuts.loads, problem, layout, at), layout.stage_ranks[at]
        link = slowest_link(problem.cluster, ranks)
        return time_after_backward(loads, problem.training, link, len(ranks))

    here = own(stage)
    if stage == 0:
        return here, here
    first = own(0)[0]
    return here, first[:, None] if stage == 1 else np.full_like(first, first[1:].min())[:, None]


def _alone(way: _Way, n: int) -> Number:
    """(1)-(5)."""
    forward, gradient = n * (way.f + way.sent), n * (way.i + way.sent_back)
    way_out, turn = way.out - way.sent_back, way.before + way.f + way.around
    bounds = (
        way.before + forward + gradient + n * way.w + way.after,
        way.before + forward + gradient + way_out,
        way.before + forward - way.sent + way.around + way.i + way.out,
        turn + gradient + n * way.w + way.after,
        turn + gradient + way_out,
    )
    return np.maximum.reduce(np.broadcast_arrays(*bounds))


def _in_turns(way: _Way, n: int, held: Number) -> Number:
    """(7)-(11)."""
    f, i = way.f + way.sent, way.i + way.sent_back
    way_out, turn = way.out - way.sent_back, way.before + way.f + way.around
    stay = way.f + way.around + i + way.w
    turns, more = np.divmod(n - 1, held)
    last = way.before + n * f - way.sent + (n - held) * (i + way.w)
    bounds = (
        last + way.around + way.i + way.out,
        turn + n * (i + way.w) + (n - held) * f + way.after,
        turn + n * i + (n - held) * f + way_out,
        way.before + (turns + 1) * stay + more * np.maximum(f, way.apart) + way.after,
        way.before + (turns + 1) * stay + more * f - way.w + way_out,
    )
    return np.maximum.reduce(np.broadcast_arrays(*bounds))


def least_steps_on_ranks(
    problem: Problem, shapes: Sequence[tuple[int, int]], *, split: bool
) -> dict[tuple[int, int], float]:
    """For each (ranks of a pipeline, replicas) the seconds that no plan on so many ranks can beat, by
    (13)-(16), however many stages each has."""
    speed, o = fastest_speed(problem.cluster), problem.cluster.action_overhead
    layers = problem.graph.layers
    forward = np.array([la.forward_time for la in layers]) / speed
    weights = np.array([la.weight_grad_time for la in layers]) / speed * split
    backward = np.array([la.input_grad_time + la.weight_grad_time for la in layers]) / speed
    gradient = backward - weights
    before = ancestors(problem)
    ahead, back = before @ forward, before @ gradient
    once, work = float((forward + gradient).sum()), float((forward + backward).sum())
    found: dict[tuple[int, int], float] = {}
    for ranks, replicas in shapes:
        n = math.ceil(problem.num_microbatches / replicas)
        start = ahead + n * (forward + gradient + 2 * o)
        along = once + (n - 1) * (np.maximum(forward, gradient) + o) + 2 * o
        of_layers = np.maximum.reduce([start + n * weights, start + back, along])
        shared = problem.num_microbatches * (work + 2 * o) / (ranks * replicas)
        found[ranks, replicas] = max(shared, float(of_layers.max()))
    return found
