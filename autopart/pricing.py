"""The price for a complete decision: a prediction for each stage, and the simulated step.

All ranks on one stage have the same price. Replicas take the same step where stages have equally
many ranks, and ranks run equally many microbatches. Then only the first replica is simulated, else
all ranks.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from autopart.activations.best_policies import best_policies, totals_with_policies
from autopart.activations.best_totals import with_best_policies
from autopart.activations.memory_shares import Share, shares_of
from autopart.activations.policies import StagePolicies, chooses_by_rank, fits_together
from autopart.activations.shared_ranks import shared_ranks_of
from autopart.cost.cuts import Cuts, some_totals, totals_at
from autopart.cost.in_flight import (
    most_in_flight,
    ranks_in_flight,
    stage_in_flight,
    stages_in_flight,
)
from autopart.cost.lending import lend_times, with_lending
from autopart.cost.made_gradients import whole_gradients
from autopart.cost.memory import (
    Memory,
    memory,
    moving_bytes,
    rank_peaks,
    repeated_bytes,
    total,
)
from autopart.cost.memory_limits import free_bytes, prediction_fits, ranks_fit
from autopart.cost.on_ranks import on_ranks
from autopart.cost.repeated_ties import without_repeats
from autopart.cost.stage_syncs import StageSync
from autopart.cost.stage_times import (
    bottleneck_time,
    busy_time,
    cut_links,
    links_around,
    minimised_time,
    traffic_times,
)
from autopart.cost.stage_totals import Array, StageTotals
from autopart.cost.step_syncs import sync_times
from autopart.cost.tied_syncs import copies_of, stages_with_copies, tied_copies
from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import has_pair_times
from autopart.records.layouts import (
    Layout,
    Partition,
    has_virtual_stages,
    one_replica,
    replicas_alike,
)
from autopart.records.peak_bytes import MicrobatchBytes
from autopart.records.plan import OrderSource
from autopart.records.prediction import (
    MemoryUse,
    MovingBytes,
    Prediction,
    StagePrediction,
    Sync,
    SyncParts,
)
from autopart.records.problem import Objective, Problem
from autopart.schedules.actions import Schedule, first_orders
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.in_flight import InFlight
from autopart.simulator.compiled import step_times
from autopart.simulator.costs import StageTimes, SyncTime, Time
from autopart.simulator.period import period_of, period_times
from autopart.simulator.timeline import simulate
from autopart.simulator.working_order import Program, compile_schedule
from autopart.stopping.time_limit import check_time


def predict(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    policies: Sequence[StagePolicies] | None = None,
    in_flight: Sequence[InFlight] | None = None,
) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...]]:
    """The prediction for each stage on its ranks, and the gradient syncs in a step.

    `policies` are for each stage; None takes the best ones. `in_flight` has for each stage the
    microbatches that its ranks keep; None takes the layout's schedule.
    """
    chosen = best_policies(problem, layout, partition) if policies is None else policies
    all_totals = totals_with_policies(problem, layout, partition, chosen)
    shares = shares_of(problem.graph, partition, chosen, all_totals)
    copies = copies_of(problem.graph, partition)
    once = without_repeats(problem, layout.stage_ranks, all_totals, copies)
    links = cut_links(problem.cluster, layout.stage_ranks)
    kept = in_flight or [stage_in_flight(layout, stage) for stage in range(len(all_totals))]
    stages: list[StagePrediction] = []
    on_their_ranks: list[StageTotals[float]] = []
    for stage, totals in enumerate(all_totals):
        replicas, count = len(layout.stage_ranks[stage]), most_in_flight(kept[stage])
        use = memory(totals, problem, replicas, kept[stage])
        share = shares[stage]._replace(loss_stash=count * shares[stage].loss_stash)
        placed = on_ranks(totals, problem, layout, stage)
        on_their_ranks.append(placed)
        around = links_around(links, stage)
        moving = moving_bytes(totals, problem, replicas, kept[stage])
        one = _prediction(problem.cluster, placed, moving, count, use, share, around)
        if has_pair_times(problem.graph):
            one = msgspec.structs.replace(one, pair_saving=placed.pair_saving)
        again = repeated_bytes(
            use,
            memory(once[stage], problem, replicas, kept[stage]),
            whole_gradients(totals, problem.training)
            - whole_gradients(once[stage], problem.training),
            totals.stash_bytes - once[stage].stash_bytes,
        )
        stages.append(msgspec.structs.replace(one, repeated=again))
    lending = with_lending(problem.cluster, layout, stages)
    return lending, _syncs(problem, layout, copies, on_their_ranks)


def _prediction(
    cluster: Cluster,
    totals: StageTotals[float],
    moving: MicrobatchBytes[float],
    in_flight: int,
    use: Memory[float],
    share: Share,
    around: tuple[Link | None, Link | None],
) -> StagePrediction:
    """The prediction for a stage with its totals on its ranks, and links over its two cuts."""
    before, after = around
    sizes = moving._asdict()
    del sizes["stash"]
    return StagePrediction(
        forward_time=totals.forward_time,
        backward_time=totals.backward_time,
        weight_grad_time=totals.weight_grad_time,
        split_time=totals.split_time,
        busy_time=busy_time(totals, cluster, before, after),
        send_time=traffic_times(totals.sent, after)[0],
        send_back_time=traffic_times(totals.received, before)[1],
        update_time=totals.update_time,
        in_flight=in_flight,
        stash_bytes=int(totals.stash_bytes),
        host_stash_bytes=int(totals.host_bytes) or msgspec.UNSET,
        moving=MovingBytes(**sizes),
        memory=MemoryUse(**use._asdict(), **share._asdict()),
        peak_bytes=int(total(use)),
    )


def _syncs(
    problem: Problem,
    layout: Layout,
    copies: npt.NDArray[np.bool_],
    all_totals: Sequence[StageTotals[float]],
) -> tuple[Sync, ...]:
    """The syncs in a step; a tied parameter has one where several stages have a copy."""
    syncs = sync_times(problem, layout, all_totals, stages_with_copies(copies))
    return tuple(map(_sync, syncs))


def _sync(sync: StageSync[float]) -> Sync:
    """A sync as the plan's file has it."""
    parts = None
    if sync.parts is not None:
        # Numbers become plain ones, as a file has them.
        own = {name: x if x is None else float(x) for name, x in sync.parts._asdict().items()}
        parts = msgspec.convert(own | {"stage": sync.parts.stage}, SyncParts)
    return Sync(what=sync.what, ranks=sync.ranks, time=float(sync.time), parts=parts)


class Decision(NamedTuple):
    """A layout with its partition, its policies and orders, and their prediction."""

    layout: Layout
    partition: Partition
    prediction: Prediction
    policies: tuple[StagePolicies, ...]
    """Policies for the layers on each stage."""
    orders: Schedule | None = None
    """An order for each rank, where a plan has its own; None where the layout names a schedule."""
    order_source: OrderSource | None = None
    """The method that found the orders."""
    degrees: tuple[int, ...] = ()
    """For each stage its tensor degree, where stages have their own; else empty."""


def price(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    orders: Schedule | None = None,
    given: tuple[StagePolicies, ...] | None = None,
) -> Decision:
    """Predict every stage with its best policies or with given ones, and simulate the step.

    `orders` gives every rank its order where a plan has its own.
    """
    in_flight = None
    if orders:
        shown, schedule = _simulated_orders(layout, orders)
        in_flight = stages_in_flight(schedule, shown.stage_ranks)
    policies = given
    if policies is None:
        own = first_orders(layout.stage_ranks, orders) if orders else None
        policies = best_policies(problem, layout, partition, own)
    stages, syncs = predict(problem, layout, partition, policies, in_flight)
    prediction = simulated(problem.cluster, layout, stages, syncs, orders, problem.objective)
    return Decision(layout, partition, prediction, policies, orders)


def simulated(
    cluster: Cluster,
    layout: Layout,
    stages: tuple[StagePrediction, ...],
    syncs: tuple[Sync, ...],
    orders: Schedule | None,
    objective: Objective = "step",
) -> Prediction:
    """The prediction for stages and syncs, with their simulated step and, as an objective, its period.

    `orders` gives every rank its order where the layout names no schedule.
    """
    in_flight: tuple[InFlight, ...] | None = None
    if orders:
        shown, schedule = _simulated_orders(layout, orders)
    else:
        shown = _simulated(layout)
        schedule = _named_schedule(shown)
        if shown is not layout and has_virtual_stages(shown):
            in_flight = tuple(ranks_in_flight(shown).values())
    peaks, hosts = rank_peaks(shown.stage_ranks, schedule, stages, in_flight)
    several = has_virtual_stages(layout) and any(hosts)
    seen = [msgspec.structs.replace(s, ranks=_seen(layout, shown, s.ranks)) for s in syncs]
    timeline = simulate(
        schedule,
        shown.stage_ranks,
        stages,
        seen,
        action_overhead=cluster.action_overhead,
        sends_overlap=cluster.sends_overlap,
        rendezvous=cluster.sends == "rendezvous",
    )
    period = msgspec.UNSET
    if objective == "period":
        period = period_of(
            schedule,
            shown.stage_ranks,
            stages,
            seen,
            action_overhead=cluster.action_overhead,
            sends_overlap=cluster.sends_overlap,
            rendezvous=cluster.sends == "rendezvous",
        )
    return Prediction(
        step_time=timeline.makespan,
        period=period,
        bubble=timeline.bubble,
        rank_peak_bytes=_of_all_ranks(layout, shown, peaks),
        rank_host_bytes=_of_all_ranks(layout, shown, hosts) if several else msgspec.UNSET,
        stages=stages,
        syncs=syncs,
    )


def _of_all_ranks(layout: Layout, shown: Layout, peaks: Sequence[int]) -> tuple[int, ...]:
    """Bytes on all ranks, from those on the simulated ranks."""
    found = [0] * (1 + max(map(max, layout.stage_ranks)))
    for ranks, seen in zip(layout.stage_ranks, shown.stage_ranks, strict=True):
        for at, rank in enumerate(ranks):
            found[rank] = peaks[seen[at % len(seen)]]
    return tuple(found)


def minimised(
    problem: Problem, prediction: Prediction, stage_ranks: Sequence[Sequence[int]]
) -> float:
    """Seconds that the problem minimises: the step, the period, or the bottleneck."""
    count = problem.num_microbatches
    return minimised_time(problem.objective, prediction, stage_ranks, count)


def may_beat(problem: Problem, layout: Layout, partition: Partition, seconds: float) -> bool:
    """Whether a partition may take less than `seconds`, without simulating it.

    Every stage must fit alone, and the bottleneck must be smaller.
    """
    stages, _ = predict(problem, layout, partition)
    on_ranks_of = zip(stages, layout.stage_ranks, strict=True)
    fit = all(free_bytes(problem.cluster, ranks, one.peak_bytes) >= 0 for one, ranks in on_ranks_of)
    busy = bottleneck_time(stages, layout.stage_ranks, layout.num_microbatches)
    return fit and busy < seconds


def fits(problem: Problem, decision: Decision) -> bool:
    """Whether every rank stays within its GPU's memory, and within its share in host memory."""
    return prediction_fits(problem.cluster, decision.prediction)


def most_bytes(decision: Decision) -> int:
    """Peak bytes on the fullest rank."""
    return max(decision.prediction.rank_peak_bytes)


def compile_layout(layout: Layout) -> Program:
    """The layout's schedule, ready to simulate any partition."""
    shown = _simulated(layout)
    return compile_schedule(_named_schedule(shown), shown.stage_ranks)


@functools.lru_cache(maxsize=2)
def _named_schedule(layout: Layout) -> Schedule:
    """The orders of a layout's named schedule; a search asks for the latest ones again and again."""
    return make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)


def price_paths(
    problem: Problem, layout: Layout, program: Program, cuts: Cuts, paths: Sequence[Sequence[int]]
) -> npt.NDArray[np.float64]:
    """Simulated seconds, one for each path over the cuts, under its best policies.

    They are the step, or the period where that is the objective.

    Infinite where some rank lacks memory for all its stages together. Each stage must fit alone; that
    is not checked here.
    """
    routes = np.asarray(paths)
    totals = _totals_along(problem, layout, cuts, routes)
    copies = tied_copies(problem, cuts, routes)
    prices = price_totals(problem, layout, program, totals, copies)
    # Stages that share a rank, choose policies together or lend to each other must fit together.
    if fits_together(problem, layout):
        once = without_repeats(problem, layout.stage_ranks, totals, copies)
        prices[~ranks_fit(problem, layout, once)] = np.inf
    return prices


def _totals_along(
    problem: Problem, layout: Layout, cuts: Cuts, routes: npt.NDArray[np.int64]
) -> list[StageTotals[Array]]:
    """Each stage's totals under its best policies, with an entry for each path."""
    if chooses_by_rank(problem, layout):
        return shared_ranks_of(problem, layout, cuts).totals(routes)
    found: list[StageTotals[Array]] = []
    for stage in range(routes.shape[1] - 1):
        check_time()
        best = with_best_policies(problem, layout, cuts, stage)
        found.append(totals_at(best, routes[:, stage], routes[:, stage + 1]))
    return found


def price_totals(
    problem: Problem,
    layout: Layout,
    program: Program,
    totals: Sequence[StageTotals[Array]],
    copies: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Simulated step times in seconds of stages with these totals, whether they fit or not.

    `totals` has for each stage arrays with an entry for each step. `copies` says which stages have a copy of
    each tied parameter, shape (steps, tied parameters, stages).
    """
    prices = np.empty(len(copies))
    patterns = copies.reshape(len(copies), -1)
    # Steps whose tied parameters lie on the same stages have the same syncs: together.
    for pattern in np.unique(patterns, axis=0):
        alike = (patterns == pattern).all(axis=1)
        own = pattern.reshape(copies.shape[1:])
        these = totals if alike.all() else [some_totals(each, alike) for each in totals]
        prices[alike] = _price_alike(problem, layout, program, these, own)
    return prices


def _price_alike(
    problem: Problem,
    layout: Layout,
    program: Program,
    given: Sequence[StageTotals[Array]],
    copies: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Price stages with the same `copies`, shape (tied parameters, stages)."""
    links = cut_links(problem.cluster, layout.stage_ranks)
    stages: list[StageTimes[Time]] = []
    all_totals: list[StageTotals[Array]] = []
    lent = lend_times(problem.cluster, layout, [own.stash_bytes for own in given])
    for stage, own in enumerate(given):
        check_time()
        totals = on_ranks(own, problem, layout, stage)
        before, after = links_around(links, stage)
        stages.append(
            StageTimes(
                forward_time=totals.forward_time,
                backward_time=totals.backward_time,
                send_time=traffic_times(totals.sent, after)[0],
                send_back_time=traffic_times(totals.received, before)[1],
                update_time=totals.update_time,
                weight_grad_time=totals.weight_grad_time,
                split_time=totals.split_time,
                pair_saving=totals.pair_saving,
                lend_time=lent[stage],
            )
        )
        all_totals.append(totals)
    syncs = sync_times(problem, layout, all_totals, stages_with_copies(copies))
    shown = _simulated(layout)
    times = period_times if problem.objective == "period" else step_times
    return times(
        program,
        shown.stage_ranks,
        stages,
        [SyncTime(_seen(layout, shown, s.ranks), s.time, s.parts) for s in syncs],
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
        rendezvous=problem.cluster.sends == "rendezvous",
    )


def _simulated(layout: Layout) -> Layout:
    """The first replica where all are alike, else the layout itself."""
    return one_replica(layout) if replicas_alike(layout) else layout


def _simulated_orders(layout: Layout, orders: Schedule) -> tuple[Layout, Schedule]:
    """The first replica and its orders where all replicas do the same, else all ranks."""
    if not replicas_alike(layout):
        return layout, orders
    count = len(layout.stage_ranks[0])
    first = first_orders(layout.stage_ranks, orders)
    # Replica r of R runs microbatches r, r + R, ...: the same order for each of them.
    alike = all(first_orders(layout.stage_ranks, orders, at) == first for at in range(1, count))
    return (one_replica(layout), first) if alike else (layout, orders)


def _seen(layout: Layout, shown: Layout, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The simulated ranks that stand for a sync's `ranks`."""
    if shown is layout:
        return ranks
    asked, found = set(ranks), set[int]()
    for own, seen in zip(layout.stage_ranks, shown.stage_ranks, strict=True):
        found.update(seen[at % len(seen)] for at, rank in enumerate(own) if rank in asked)
    return tuple(sorted(found))
