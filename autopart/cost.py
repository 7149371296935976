"""Seconds and bytes: the only room in which they are computed.

The formulas work on one stage (plain numbers), on all stages between two cuts of a graph at once
(numpy matrices) and on the affine expressions of an integer program, so that a solver and the
evaluation of its plan cannot disagree.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cluster import (
    Cluster,
    Link,
    link_between,
    slowest_link,
    slowest_speed,
    smallest_memory,
)
from autopart.frontier import Frontiers, Points, can_recompute, leaves_choice, only_choice
from autopart.graph import positions
from autopart.layouts import Layout, one_replica, own_microbatches
from autopart.plan import MemoryUse, Plan, StagePrediction, Sync, stage_ranks
from autopart.problem import CUSTOM, Problem
from autopart.schedule import Schedule, StageRanks, warmup
from autopart.schedules import make_schedule
from autopart.simulator.memory import Held, held_counts, most_held, peak_stash
from autopart.stage_load import Number, Partition, StageLoad, Traffic, stage_loads


class Memory(NamedTuple):
    """The bytes of one rank at its peak, by what they are."""

    weights: Number
    gradients: Number
    optimizer: Number
    stash: Number
    workspace: Number
    buffers: Number
    reserve: Number


def send_time(link: Link, num_bytes: Number, num_tensors: Number) -> Number:
    """Seconds for `num_tensors` messages of `num_bytes` in all: latency each, then bandwidth."""
    return num_tensors * link.latency + num_bytes / link.bandwidth


def all_reduce_time(link: Link, num_bytes: Number, num_ranks: int) -> Number:
    """Seconds of a ring all-reduce: 2 (r - 1) steps of 1/r of the bytes (Patarasuk and Yuan,
    J. Parallel Distrib. Comput. 2009), times what the link's all-reduces were measured to take more."""
    steps = 2 * (num_ranks - 1)
    ring = steps * (link.latency + num_bytes / num_ranks / link.bandwidth)
    return ring * link.all_reduce_factor


def time_after_backward(load: StageLoad, link: Link, num_ranks: int) -> Number:
    """Seconds of a stage's own gradient sync over `num_ranks` replicas and of its optimizer step."""
    return load.update_time + all_reduce_time(link, load.grad_bytes, num_ranks)


def in_flight(layout: Layout, stage: int) -> int:
    """Most microbatches past F and before B on a rank of stage `stage` (from 0): GPipe holds all that
    it runs, 1F1B those of its warmup, orders of a plan's own at least one."""
    own = own_microbatches(layout, stage)
    if layout.schedule == "gpipe":
        return own
    if layout.schedule == "1f1b":
        return min(warmup(layout.stage_ranks, stage), own)
    return 1 if layout.schedule == CUSTOM else _held_of(layout)[stage]


@functools.lru_cache(maxsize=64)
def _held_of(layout: Layout) -> tuple[int, ...]:
    one = one_replica(layout)
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    return held_by(orders, one.stage_ranks)


def held_by(schedule: Schedule, stage_ranks: StageRanks) -> tuple[int, ...]:
    """For each stage the most microbatches past F and before B (or W) on any of its ranks."""
    used = {rank for ranks in stage_ranks for rank in ranks}
    held = {rank: most_held(schedule[rank]) for rank in used}
    return tuple(max(held[r][stage] for r in ranks) for stage, ranks in enumerate(stage_ranks))


def slowed(load: StageLoad, speed: float) -> StageLoad:
    """The load on a GPU of `speed`, relative to the profile's device: every time grows by 1 / speed."""
    if speed == 1.0:
        return load
    return load._replace(
        forward_time=load.forward_time / speed,
        backward_time=load.backward_time / speed,
        weight_grad_time=load.weight_grad_time / speed,
        update_time=load.update_time / speed,
    )


def on_ranks(load: StageLoad, problem: Problem, layout: Layout, stage: int) -> StageLoad:
    """The load as stage `stage` of a layout: its slowest rank sets the pace."""
    return slowed(load, slowest_speed(problem.cluster, layout.stage_ranks[stage]))


def memory(
    load: StageLoad, problem: Problem, microbatches: int, microbatches_in_flight: int
) -> Memory:
    """Bytes of a rank at its peak. Buffers: the next receive, two sends and two receives of
    gradients under way, and the part of the batch that the stage reads."""
    gradients_moving = 2 * (load.received.grad_bytes + load.sent.grad_bytes)
    return Memory(
        weights=load.weight_bytes,
        gradients=load.grad_bytes,
        optimizer=load.num_trainable * problem.optimizer_bytes,
        stash=microbatches_in_flight * load.stash_bytes,
        workspace=load.workspace_bytes,
        buffers=load.received.bytes + gradients_moving + microbatches * load.input_bytes,
        reserve=problem.cluster.reserve_bytes,
    )


def treat(load: StageLoad, points: Points, choice: int) -> StageLoad:
    """The load with the layers of one choice recomputed."""
    stash = load.stash_bytes - int(points.freed_bytes[choice])
    return load._replace(
        backward_time=load.backward_time + float(points.extra_time[choice]),
        stash_bytes=stash,
        inner_stash_bytes=min(load.inner_stash_bytes, stash),
        workspace_bytes=int(points.workspace_bytes[choice]),
    )


def best_choice(
    load: StageLoad, points: Points, problem: Problem, layout: Layout, stage: int
) -> int:
    """The choice of stage `stage` with the fewest extra seconds that fits on its ranks; the one with
    the fewest bytes where none does."""
    own, held = own_microbatches(layout, stage), in_flight(layout, stage)
    needed = [
        total(memory(treat(load, points, choice), problem, own, held))
        for choice in range(len(points.extra_time))
    ]
    limit = smallest_memory(problem.cluster, layout.stage_ranks[stage])
    fitting = (choice for choice, size in enumerate(needed) if size <= limit)
    return next(fitting, needed.index(min(needed)))


def best_recompute(problem: Problem, layout: Layout, partition: Partition) -> Partition:
    """For each stage of a partition the positions of the layers that are best recomputed there."""
    if not leaves_choice(problem.demands) or not can_recompute(layout.schedule):
        return ((),) * len(partition)
    frontiers = Frontiers(problem.graph, problem.demands)
    found: list[tuple[int, ...]] = []
    for stage, load in enumerate(stage_loads(problem.graph, partition)):
        points = frontiers.frontier(partition[stage])
        assert points.chosen is not None
        chosen = points.chosen[best_choice(load, points, problem, layout, stage)]
        found.append(tuple(at for at in sorted(partition[stage]) if chosen >> at & 1))
    return tuple(found)


def compute_time(load: StageLoad, cluster: Cluster) -> Number:
    """Seconds that a rank computes for one microbatch: one F and one B, each with its fixed cost."""
    return load.forward_time + load.backward_time + 2 * cluster.action_overhead


def occupied_time(busy: Number, microbatches: int) -> Number:
    """Seconds of a step that a rank is busy with its microbatches, `busy` seconds with each."""
    return microbatches * busy


def bottleneck_time(
    stages: Sequence[StagePrediction], stage_ranks: Sequence[Sequence[int]], num_microbatches: int
) -> float:
    """Seconds of a step that its busiest rank is busy with microbatches, over all its stages: replicas
    share the microbatches in turn. Syncs and updates, once a step, are not counted."""
    occupied: dict[int, float] = {}
    for stage, ranks in zip(stages, stage_ranks, strict=True):
        for turn, rank in enumerate(ranks):
            own = math.ceil((num_microbatches - turn) / len(ranks))
            occupied[rank] = occupied.get(rank, 0.0) + occupied_time(stage.busy_time, own)
    return max(occupied.values())


def steady_period(
    busy_times: Sequence[float],
    send_times: Sequence[float],
    in_flight: Sequence[int],
    replicas: Sequence[int] | None = None,
) -> float:
    """A lower bound on the seconds from one microbatch to the next once the pipeline is full, which
    1F1B with stages that are alike reaches.

    `busy_times` are forward and backward of a microbatch on each stage, `send_times` one send over
    the cut behind each stage but the last, in either direction, beside compute. `in_flight` are the
    w_s microbatches that one of the r_s replicas of stage s holds at most; each runs every r_s-th.

        (1) period >= busy_s / r_s
        (2) period >= (busy_s + .. + busy_t + 2 (send_s + .. + send_(t-1))) / (r (w_s - w_t + 1))

    (2) is the way of a microbatch from its F on stage s to stage t > s and back: between its F and
    the F that its B lets go, s runs w_s - w_t + 1. Where replicas differ it is used to the last
    stage alone, whose w is 1, with r = r_s.
    """
    counts = replicas or [1] * len(busy_times)
    period = max(busy / r for busy, r in zip(busy_times, counts, strict=True))
    last = len(busy_times) - 1
    for s, (held, r) in enumerate(zip(in_flight, counts, strict=True)):
        way = busy_times[s]
        for t in range(s + 1, last + 1):
            way += busy_times[t] + 2 * send_times[t - 1]
            if len(set(counts)) == 1 or t == last:
                period = max(period, way / (r * (held - in_flight[t] + 1)))
    return period


def plan_bottleneck(plan: Plan) -> float:
    """`bottleneck_time` of a plan, by its own prediction."""
    return bottleneck_time(plan.prediction.stages, stage_ranks(plan), plan.num_microbatches)


def traffic_times(traffic: Traffic, link: Link | None) -> tuple[Number, Number]:
    """Seconds of the activations' and of the gradients' way over one cut; 0 where there is none."""
    if link is None:
        return 0.0 * traffic.bytes, 0.0 * traffic.bytes
    forward = send_time(link, traffic.bytes, traffic.tensors)
    return forward, send_time(link, traffic.grad_bytes, traffic.grad_tensors)


def busy_time(load: StageLoad, cluster: Cluster, before: Link | None, after: Link | None) -> Number:
    """Seconds that a rank is occupied by one microbatch: compute and, where sends do not overlap
    with it, all that the rank sends and receives."""
    busy = compute_time(load, cluster)
    if cluster.sends_overlap:
        return busy
    return busy + sum(traffic_times(load.received, before)) + sum(traffic_times(load.sent, after))


def cut_links(cluster: Cluster, stage_ranks: Sequence[Sequence[int]]) -> list[Link | None]:
    """For each cut the slowest link that its sends use, when microbatch m goes from the rank
    m mod r of one stage to the rank m mod r of the next; None where no send leaves its rank."""
    links: list[Link | None] = []
    for here, there in itertools.pairwise(stage_ranks):
        turns = math.lcm(len(here), len(there))
        pairs = {(here[m % len(here)], there[m % len(there)]) for m in range(turns)}
        used = [link_between(cluster, a, b) for a, b in pairs if a != b]
        slowest = min(used, key=lambda link: (link.bandwidth, -link.latency), default=None)
        links.append(slowest)
    return links


def links_around(links: Sequence[Link | None], stage: int) -> tuple[Link | None, Link | None]:
    """The links before and after a stage; None at the ends."""
    before = links[stage - 1] if stage > 0 else None
    return before, links[stage] if stage < len(links) else None


def predict(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    recompute: Partition | None = None,
    held: Sequence[int] | None = None,
) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...]]:
    """What each stage of a partition needs on its ranks, and the gradient syncs of a step. `recompute`
    are the positions of the layers that each stage recomputes, those of `best_recompute` where it is
    None; `held` the microbatches in flight on each stage, those of the layout's schedule where None."""
    chosen = best_recompute(problem, layout, partition) if recompute is None else recompute
    loads = _treated(problem, partition, chosen)
    links = cut_links(problem.cluster, layout.stage_ranks)
    counts = held or [in_flight(layout, stage) for stage in range(len(loads))]
    stages = tuple(
        _predict_stage(
            problem,
            layout,
            stage,
            counts[stage],
            on_ranks(load, problem, layout, stage),
            *links_around(links, stage),
        )
        for stage, load in enumerate(loads)
    )
    return stages, _syncs(problem, layout, partition, loads)


def _treated(problem: Problem, partition: Partition, recompute: Partition) -> list[StageLoad]:
    graph = problem.graph
    return [
        treat(load, only_choice(graph, members, chosen), 0) if chosen else load
        for load, members, chosen in zip(
            stage_loads(graph, partition), partition, recompute, strict=True
        )
    ]


def _predict_stage(
    problem: Problem,
    layout: Layout,
    stage: int,
    held: int,
    load: StageLoad,
    before: Link | None,
    after: Link | None,
) -> StagePrediction:
    use = MemoryUse(**memory(load, problem, own_microbatches(layout, stage), held)._asdict())
    return StagePrediction(
        forward_time=load.forward_time,
        backward_time=load.backward_time,
        weight_grad_time=load.weight_grad_time,
        busy_time=busy_time(load, problem.cluster, before, after),
        send_time=traffic_times(load.sent, after)[0],
        send_back_time=traffic_times(load.received, before)[1],
        update_time=load.update_time,
        in_flight=held,
        stash_bytes=load.stash_bytes,
        memory=use,
        peak_bytes=total(use),
    )


def total(use: MemoryUse | Memory) -> Number:
    """All bytes of a rank together."""
    return (
        use.weights
        + use.gradients
        + use.optimizer
        + use.stash
        + use.workspace
        + use.buffers
        + use.reserve
    )


def rank_peaks(
    stage_ranks: StageRanks, schedule: Schedule, stages: Sequence[StagePrediction]
) -> tuple[int, ...]:
    """The peak bytes of each rank; 0 for an idle one. Where a rank has several stages, the most that
    its order ever holds of their stash, the largest workspace and one reserve."""
    on_rank: dict[int, list[int]] = {}
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            on_rank.setdefault(rank, []).append(stage)
    peaks = [0] * len(schedule)
    for rank, own in on_rank.items():
        if len(own) == 1:
            peaks[rank] = stages[own[0]].peak_bytes
        else:
            stash = [stage.stash_bytes for stage in stages]
            held = peak_stash(held_counts(schedule[rank]), stash)
            peaks[rank] = int(bytes_beside_stash([stages[s].memory for s in own]) + held)
    return tuple(peaks)


def peak_with_copies(stage: StagePrediction, in_flight: int, copies: int) -> int:
    """The peak of a stage's rank with other microbatches in flight and copies of its weights."""
    more = (in_flight - stage.in_flight) * stage.stash_bytes
    return stage.peak_bytes + more + copies * stage.memory.weights


def bytes_beside_stash(uses: Sequence[MemoryUse] | Sequence[Memory]) -> Number:
    """What a rank with stages of these uses holds at its peak, but for the stash."""
    lasting = sum(use.weights + use.gradients + use.optimizer + use.buffers for use in uses)
    once = [np.broadcast_arrays(0, *(getattr(use, kind) for use in uses)) for kind in _HELD_ONCE]
    return lasting + sum(np.maximum.reduce(sizes) for sizes in once)


_HELD_ONCE = ("workspace", "reserve")
"""What a rank holds once, however many stages it has."""


def peaks_fit(problem: Problem, layout: Layout, loads: Sequence[StageLoad]) -> Number:
    """Whether every rank stays within its memory, for loads of the stages that may be arrays; the
    layout's replicas are alike."""
    own = [own_microbatches(layout, stage) for stage in range(len(loads))]
    uses = [memory(load, problem, m, 0) for load, m in zip(loads, own, strict=True)]
    stash = [load.stash_bytes for load in loads]
    fit: Number = True
    for rank, held in _holds_of(layout):
        on = [s for s, ranks in enumerate(layout.stage_ranks) if ranks[0] == rank]
        limit = smallest_memory(problem.cluster, layout.stage_ranks[on[0]])
        peak = bytes_beside_stash([uses[s] for s in on]) + peak_stash(held, stash)
        fit = fit & (peak <= limit)
    return fit


@functools.lru_cache(maxsize=64)
def _holds_of(layout: Layout) -> tuple[tuple[int, Held], ...]:
    """The ranks of the first replica, with what their orders hold."""
    one = one_replica(layout)
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    ranks = dict.fromkeys(ranks[0] for ranks in layout.stage_ranks)
    return tuple((rank, held_counts(order)) for rank, order in zip(ranks, orders, strict=True))


def _syncs(
    problem: Problem, layout: Layout, partition: Partition, loads: Sequence[StageLoad]
) -> tuple[Sync, ...]:
    place = positions(problem.graph)
    members = [{place[name] for name in tied.layers} for tied in problem.graph.tied]
    holders = [
        tuple(s for s, layers in enumerate(partition) if own.intersection(layers))
        for own in members
    ]
    return sync_times(problem, layout, [load.grad_bytes for load in loads], holders)


def sync_times(
    problem: Problem,
    layout: Layout,
    grad_bytes: Sequence[Number],
    holders: Sequence[tuple[int, ...]],
) -> tuple[Sync, ...]:
    """The gradient syncs of a step: of each stage over its replicas, then of each tied parameter
    over all ranks of the stages that hold it. `holders` says which, for each tied parameter."""
    syncs = [
        Sync(what=f"stage {stage}", ranks=ranks, time=_sync_time(problem, ranks, size))
        for stage, (ranks, size) in enumerate(zip(layout.stage_ranks, grad_bytes, strict=True))
        if len(ranks) > 1
    ]
    for tied, stages in zip(problem.graph.tied, holders, strict=True):
        if len(stages) > 1:
            ranks = tuple(sorted({rank for s in stages for rank in layout.stage_ranks[s]}))
            if set(ranks) == set(layout.stage_ranks[stages[0]]):
                continue  # the same ranks hold it once, and sync it with the stage
            time = _sync_time(problem, ranks, tied.grad_bytes)
            syncs.append(Sync(what=tied.name, ranks=ranks, time=time))
    return tuple(syncs)


def _sync_time(problem: Problem, ranks: tuple[int, ...], num_bytes: Number) -> Number:
    return all_reduce_time(slowest_link(problem.cluster, ranks), num_bytes, len(ranks))
