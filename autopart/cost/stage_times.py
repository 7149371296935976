"""Seconds that a stage computes and sends, and the bottleneck among stages."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from autopart.cost.links import link_across, link_off_rail, send_time
from autopart.cost.rails import rails_of, sending_pairs
from autopart.cost.stage_totals import StageTotals, Traffic
from autopart.records.cluster import Cluster, Link
from autopart.records.plan import Plan, stage_ranks
from autopart.records.prediction import Prediction, StagePrediction
from autopart.records.problem import Objective
from autopart.schedules.actions import microbatches_per_replica
from autopart.units import Q


def compute_time(totals: StageTotals[Q], cluster: Cluster) -> Q:
    """Seconds that a rank computes for one microbatch: one F and one B, each with its fixed cost."""
    return totals.forward_time + totals.backward_time + 2 * cluster.action_overhead


def occupied_time(busy: Q, microbatches: int) -> Q:
    """Seconds per step that a rank is busy with its microbatches, `busy` seconds for each."""
    return microbatches * busy


def bottleneck_time(
    stages: Sequence[StagePrediction], stage_ranks: Sequence[Sequence[int]], num_microbatches: int
) -> float:
    """Seconds per step that the busiest rank is busy with microbatches, over all its stages.

    Replicas take the microbatches in turn. Syncs and updates happen once per step, and are not counted.
    """
    occupied: dict[int, float] = {}
    for stage, ranks in zip(stages, stage_ranks, strict=True):
        for turn, rank in enumerate(ranks):
            own = microbatches_per_replica(num_microbatches, len(ranks), turn)
            occupied[rank] = occupied.get(rank, 0.0) + occupied_time(stage.busy_time, own)
    return max(occupied.values())


def plan_bottleneck(plan: Plan) -> float:
    """`bottleneck_time` for a plan, by its own prediction."""
    return bottleneck_time(plan.prediction.stages, stage_ranks(plan), plan.num_microbatches)


def minimised_time(
    objective: Objective,
    prediction: Prediction,
    stage_ranks: Sequence[Sequence[int]],
    num_microbatches: int,
) -> float:
    """Seconds that an objective minimises: the step, the period, or the bottleneck."""
    if objective == "step":
        return prediction.step_time
    if objective == "period":
        assert prediction.period is not msgspec.UNSET
        return prediction.period
    return bottleneck_time(prediction.stages, stage_ranks, num_microbatches)


def plan_minimised(plan: Plan) -> float:
    """`minimised_time` for a plan, by its own prediction."""
    return minimised_time(plan.objective, plan.prediction, stage_ranks(plan), plan.num_microbatches)


def bottleneck_period(
    busy_times: Sequence[float],
    send_times: Sequence[float],
    in_flight: Sequence[int],
    replicas: Sequence[int] | None = None,
) -> float:
    """A lower bound on the seconds from one microbatch to the next in a full pipeline.

    1F1B with equal stages reaches it.

    Symbols   busy_s   forward and backward seconds for one microbatch on stage s
              send_s   seconds for one send over the cut behind stage s, in either direction, beside compute
              w_s      the most microbatches in flight on one replica (`in_flight`)
              r_s      replicas; each runs every r_s-th microbatch

        (1) period >= busy_s / r_s
        (2) period >= (busy_s + .. + busy_t + 2 (send_s + .. + send_(t-1))) / (r (w_s - w_t + 1))

    (2) follows a microbatch from its F on stage s to stage t > s and back. After its B, stage s may start another F.
    Between these two forwards, stage s starts w_s - w_t + 1 forwards. Where all stages have equal replicas, r is their
    number. Where they differ, t is the last stage only: there w is 1, and r = r_s.
    """
    counts = replicas or [1] * len(busy_times)
    period = max(busy / r for busy, r in zip(busy_times, counts, strict=True))  # (1)
    last = len(busy_times) - 1
    for s, (own, r) in enumerate(zip(in_flight, counts, strict=True)):
        there_and_back = busy_times[s]
        for t in range(s + 1, last + 1):
            there_and_back += busy_times[t] + 2 * send_times[t - 1]
            if len(set(counts)) == 1 or t == last:
                period = max(period, there_and_back / (r * (own - in_flight[t] + 1)))  # (2)
    return period


def traffic_times(traffic: Traffic[Q], link: Link | None) -> tuple[Q, Q]:
    """Seconds for activations and for gradients over one cut; 0 where no send leaves its rank."""
    if link is None:
        return 0.0 * traffic.bytes, 0.0 * traffic.bytes
    forward = send_time(link, traffic.bytes, traffic.tensors)
    return forward, send_time(link, traffic.grad_bytes, traffic.grad_tensors)


def busy_time(
    totals: StageTotals[Q], cluster: Cluster, before: Link | None, after: Link | None
) -> Q:
    """Seconds per microbatch that a rank is busy: compute, and blocking sends and receives.

    `before` and `after` are the links over the stage's cuts (`links_around`).
    """
    busy = compute_time(totals, cluster)
    if cluster.sends_overlap:
        return busy
    return (
        busy + sum(traffic_times(totals.received, before)) + sum(traffic_times(totals.sent, after))
    )


def cut_links(cluster: Cluster, stage_ranks: Sequence[Sequence[int]]) -> list[Link | None]:
    """For each cut the slowest link that its sends use; None where no send leaves its rank."""
    links: list[Link | None] = []
    across, off_rail = link_across(cluster), link_off_rail(cluster)
    for here, there in itertools.pairwise(map(np.asarray, stage_ranks)):
        senders, receivers = sending_pairs(here, there)
        moves = senders != receivers
        crosses = senders // cluster.gpus_per_node != receivers // cluster.gpus_per_node
        same = rails_of(cluster, senders) == rails_of(cluster, receivers)
        used = [cluster.intra_node] * bool((moves & ~crosses).any())
        used += [across] * bool((crosses & same).any())
        used += [off_rail] * bool((crosses & ~same).any())
        slowest = min(used, key=lambda link: (link.bandwidth, -link.latency), default=None)
        links.append(slowest)
    return links


def links_around(links: Sequence[Link | None], stage: int) -> tuple[Link | None, Link | None]:
    """The links before and after a stage; None at the pipeline's ends."""
    before = links[stage - 1] if stage > 0 else None
    return before, links[stage] if stage < len(links) else None
