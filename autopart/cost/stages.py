"""Seconds of a stage, and what it needs in all."""

import itertools
import math
from collections.abc import Sequence

from autopart.cluster import Cluster, Link, link_between
from autopart.cost.attribution import Share, share_of
from autopart.cost.choices import best_ways, treated_stages
from autopart.cost.links import send_time
from autopart.cost.on_ranks import on_ranks
from autopart.cost.rank_bytes import Memory, holding_of, memory, most_in_flight, sizes, total
from autopart.cost.syncs import sync_times
from autopart.graph import positions
from autopart.layouts import Layout
from autopart.plan import MemoryUse, MovingBytes, Plan, StagePrediction, Sync, stage_ranks
from autopart.problem import Problem
from autopart.simulator.holding import Holding
from autopart.stage_load import Number, Partition, StageLoad, Traffic
from autopart.ways import StageWays


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
    ways: Sequence[StageWays] | None = None,
    held: Sequence[Holding] | None = None,
) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...]]:
    """What each stage of a partition needs on its ranks, and the gradient syncs of a step. `ways` are
    those of each stage's layers, `best_ways` where it is None; `held` what the ranks of each stage hold of it,
    under the layout's schedule where None."""
    chosen = best_ways(problem, layout, partition) if ways is None else ways
    loads = treated_stages(problem, layout, partition, chosen)
    links = cut_links(problem.cluster, layout.stage_ranks)
    holds = held or [holding_of(layout, stage) for stage in range(len(loads))]
    stages: list[StagePrediction] = []
    for stage, load in enumerate(loads):
        replicas, count = len(layout.stage_ranks[stage]), most_in_flight(holds[stage])
        use = memory(load, problem, replicas, holds[stage])
        share = share_of(problem.graph, partition[stage], chosen[stage], load)
        share = share._replace(loss_stash=count * share.loss_stash)
        placed = on_ranks(load, problem, layout, stage)
        around = links_around(links, stage)
        stages.append(_prediction(problem.cluster, placed, count, use, share, around))
    return tuple(stages), _syncs(problem, layout, partition, loads)


def _prediction(
    cluster: Cluster,
    load: StageLoad,
    held: int,
    use: Memory,
    share: Share,
    around: tuple[Link | None, Link | None],
) -> StagePrediction:
    before, after = around
    moving = sizes(load)._asdict()
    del moving["stash"]
    return StagePrediction(
        forward_time=load.forward_time,
        backward_time=load.backward_time,
        weight_grad_time=load.weight_grad_time,
        split_time=load.split_time,
        busy_time=busy_time(load, cluster, before, after),
        send_time=traffic_times(load.sent, after)[0],
        send_back_time=traffic_times(load.received, before)[1],
        update_time=load.update_time,
        in_flight=held,
        stash_bytes=load.stash_bytes,
        moving=MovingBytes(**moving),
        memory=MemoryUse(**use._asdict(), **share._asdict()),
        peak_bytes=total(use),
    )


def _syncs(
    problem: Problem, layout: Layout, partition: Partition, loads: Sequence[StageLoad]
) -> tuple[Sync, ...]:
    place = positions(problem.graph)
    members = [{place[name] for name in tied.layers} for tied in problem.graph.tied]
    holders = [
        tuple(s for s, layers in enumerate(partition) if own.intersection(layers))
        for own in members
    ]
    return sync_times(problem, layout, loads, holders)
