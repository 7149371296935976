"""What complete decisions cost: the stages' predictions and the simulated step.

The ranks of a stage are priced alike. Where every stage has as many of them, and they run as many
microbatches each, the step of one replica of the pipeline is the step of all, and only that one is
simulated; else all ranks are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cluster import host_share, smallest_memory
from autopart.cost import (
    best_ways,
    bottleneck_time,
    cut_links,
    held_by,
    links_around,
    on_ranks,
    peaks_fit,
    predict,
    rank_peaks,
    sync_times,
    traffic_times,
)
from autopart.cuts import Cuts
from autopart.layouts import Layout, alike, one_replica, several_stages
from autopart.plan import OrderSource, Prediction, Sync
from autopart.problem import Problem
from autopart.schedule import Schedule
from autopart.schedules import make_schedule
from autopart.simulator import (
    Program,
    StageTimes,
    SyncTime,
    compile_schedule,
    simulate,
    step_times,
)
from autopart.stage_load import Number, Partition, StageLoad, Traffic
from autopart.treated import treated
from autopart.ways import StageWays


class Decision(NamedTuple):
    """A layout with its partition, and what follows from it."""

    layout: Layout
    partition: Partition
    prediction: Prediction
    ways: tuple[StageWays, ...]
    """For each stage those of its layers."""
    orders: Schedule | None = None
    """The orders of all ranks, where the layout's schedule names none."""
    order_source: OrderSource | None = None


def price(
    problem: Problem, layout: Layout, partition: Partition, orders: Schedule | None = None
) -> Decision:
    """Predict every stage and simulate the step; `orders` are those of all ranks, where the layout's
    schedule names none."""
    ways = best_ways(problem, layout, partition)
    shown = layout if orders else _simulated(layout)
    schedule = orders or make_schedule(layout.schedule, shown.stage_ranks, shown.num_microbatches)
    held = held_by(orders, layout.stage_ranks) if orders else None
    stages, syncs = predict(problem, layout, partition, ways, held)
    timeline = simulate(
        schedule,
        shown.stage_ranks,
        stages,
        [Sync(what=s.what, ranks=_seen(layout, shown, s.ranks), time=s.time) for s in syncs],
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
    )
    prediction = Prediction(
        step_time=timeline.makespan,
        bubble=timeline.bubble,
        rank_peak_bytes=_all_peaks(layout, shown, rank_peaks(shown.stage_ranks, schedule, stages)),
        stages=stages,
        syncs=syncs,
    )
    return Decision(layout, partition, prediction, ways, orders)


def _all_peaks(layout: Layout, shown: Layout, peaks: Sequence[int]) -> tuple[int, ...]:
    """The peaks of all ranks, of those of the ranks that are simulated."""
    found = [0] * (1 + max(rank for ranks in layout.stage_ranks for rank in ranks))
    for ranks, seen in zip(layout.stage_ranks, shown.stage_ranks, strict=True):
        for rank in ranks:
            found[rank] = peaks[rank if shown is layout else seen[0]]
    return tuple(found)


def minimised(
    problem: Problem, prediction: Prediction, stage_ranks: Sequence[Sequence[int]]
) -> float:
    """Seconds of what the problem minimises: of the step, or of its busiest rank."""
    if problem.objective == "step":
        return prediction.step_time
    return bottleneck_time(prediction.stages, stage_ranks, problem.num_microbatches)


def may_beat(problem: Problem, layout: Layout, partition: Partition, seconds: float) -> bool:
    """Whether a partition may take less than `seconds`, without simulating it: every stage fits alone, and
    keeps no rank busy for as long."""
    stages, _ = predict(problem, layout, partition)
    loads = zip(stages, layout.stage_ranks, strict=True)
    fit = all(one.peak_bytes <= smallest_memory(problem.cluster, ranks) for one, ranks in loads)
    busy = bottleneck_time(stages, layout.stage_ranks, layout.num_microbatches)
    return fit and busy < seconds


def fits(problem: Problem, decision: Decision) -> bool:
    """Whether every rank stays within the memory of its GPU, and within its share of the host's."""
    share = host_share(problem.cluster)
    return all(
        peak <= smallest_memory(problem.cluster, (rank,))
        for rank, peak in enumerate(decision.prediction.rank_peak_bytes)
        if peak
    ) and all(share is None or stage.memory.host <= share for stage in decision.prediction.stages)


def most_bytes(decision: Decision) -> int:
    """The peak bytes of the fullest rank."""
    return max(decision.prediction.rank_peak_bytes)


def compile_layout(layout: Layout) -> Program:
    """The schedule to simulate, ready for any partition of the layout."""
    shown = _simulated(layout)
    schedule = make_schedule(layout.schedule, shown.stage_ranks, shown.num_microbatches)
    return compile_schedule(schedule, shown.stage_ranks)


def price_paths(
    problem: Problem, layout: Layout, program: Program, cuts: Cuts, paths: Sequence[Sequence[int]]
) -> Number:
    """The simulated step times of several paths over the cuts, as an array; infinite where a rank with
    several stages has not the memory for all. That each stage fits alone is not asked."""
    ways = np.asarray(paths)
    prices = np.empty(len(ways))
    holders = _holders(problem, cuts, ways)
    for pattern in np.unique(holders.reshape(len(ways), -1), axis=0):
        alike = (holders.reshape(len(ways), -1) == pattern).all(axis=1)
        held = pattern.reshape(holders.shape[1:])
        prices[alike] = _price_alike(problem, layout, program, cuts, ways[alike], held)
    if several_stages(layout):
        loads = [_load_at(cuts.loads, *ways[:, s : s + 2].T) for s in range(ways.shape[1] - 1)]
        prices[~peaks_fit(problem, layout, loads)] = np.inf
    return prices


def _holders(problem: Problem, cuts: Cuts, ways: Number) -> Number:
    """Boolean, shape (paths, tied parameters, stages): whether a stage holds a copy."""
    place = {layer.name: at for at, layer in enumerate(problem.graph.layers)}
    rows = [
        np.diff(cuts.ahead[:, [place[name] for name in set(tied.layers)]].sum(axis=1)[ways]) > 0
        for tied in problem.graph.tied
    ]
    shape = (len(ways), 0, ways.shape[1] - 1)
    return np.stack(rows, axis=1) if rows else np.zeros(shape, dtype=bool)


def _price_alike(
    problem: Problem, layout: Layout, program: Program, cuts: Cuts, ways: Number, held: Number
) -> Number:
    """Price paths whose tied parameters lie on the same stages."""
    links = cut_links(problem.cluster, layout.stage_ranks)
    stages: list[StageTimes] = []
    loads: list[StageLoad] = []
    for stage in range(len(layout.stage_ranks)):
        best = treated(problem, layout, cuts, stage)
        load = _load_at(best, ways[:, stage], ways[:, stage + 1])
        load = on_ranks(load, problem, layout, stage)
        before, after = links_around(links, stage)
        stages.append(
            StageTimes(
                forward_time=load.forward_time,
                backward_time=load.backward_time,
                send_time=traffic_times(load.sent, after)[0],
                send_back_time=traffic_times(load.received, before)[1],
                update_time=load.update_time,
                weight_grad_time=load.weight_grad_time,
                split_time=load.split_time,
            )
        )
        loads.append(load)
    tied = [tuple(int(s) for s in np.flatnonzero(row)) for row in held]
    syncs, shown = sync_times(problem, layout, loads, tied), _simulated(layout)
    return step_times(
        program,
        shown.stage_ranks,
        stages,
        [SyncTime(_seen(layout, shown, s.ranks), s.time) for s in syncs],
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
    )


def _load_at(loads: StageLoad, starts: Number, ends: Number) -> StageLoad:
    """The loads of the stages [start, end], one for each path."""
    received = Traffic(*(what[starts, 0] for what in loads.received))
    sent = Traffic(*(what[0, ends] for what in loads.sent))
    fields = {
        name: loads_of[starts, ends]
        for name, loads_of in loads._asdict().items()
        if name not in ("received", "sent")
    }
    return StageLoad(**fields, received=received, sent=sent)


def _simulated(layout: Layout) -> Layout:
    """The first replica where all are alike; else the layout itself."""
    return one_replica(layout) if alike(layout) else layout


def _seen(layout: Layout, shown: Layout, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks of a sync among those that are simulated."""
    if shown is layout:
        return ranks
    asked = set(ranks)
    places = zip(layout.stage_ranks, shown.stage_ranks, strict=True)
    return tuple(sorted({seen[0] for own, seen in places if asked.intersection(own)}))
