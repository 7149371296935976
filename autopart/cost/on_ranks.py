"""Stage times on the stage's ranks: GPU speed, ZeRO-1 sharing for the update, optimizer state from the host."""

from typing import Any

import numpy as np

from autopart.cost.links import send_time
from autopart.cost.memory import largest_part
from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import update_share
from autopart.records.cluster import HostLink, slowest_speed
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.records.training import state_bytes
from autopart.units import Q


def on_replicas(
    totals: StageTotals[Q], problem: Problem, replicas: int, speed: float
) -> StageTotals[Q]:
    """The totals on so many GPUs with `speed` relative to the profile's device.

    Each time grows by 1 / speed. With ZeRO-1 the replicas share the update, but for its unshared part. Optimizer state
    on the host is copied to the device for the update and back, one copy after the other.
    """
    sharing = update_share(problem.training, replicas)
    host, on_host = problem.cluster.host_link, _hosted(totals)
    if host is not None and on_host:
        stepped = largest_part(totals.num_trainable, sharing) * totals.optimizer_on_host
        trip = state_trip(host, stepped * state_bytes(problem.training))
    elif speed == 1.0 and sharing == 1:
        return totals
    else:
        trip = 0.0
    update = totals.update_time / (speed * sharing)
    if sharing > 1:
        # Of U seconds that s replicas share but for V, each takes U / s + V (s - 1) / s.
        update = update + totals.unshared_update_time * ((sharing - 1) / (speed * sharing))
    return totals._replace(
        forward_time=totals.forward_time / speed,
        backward_time=totals.backward_time / speed,
        weight_grad_time=totals.weight_grad_time / speed,
        split_time=totals.split_time / speed,
        pair_saving=totals.pair_saving / speed,
        update_time=update + trip,
    )


def state_trip(host: HostLink, size: Q) -> Q:
    """Seconds to copy so many bytes of optimizer state to the device and back."""
    return 2 * send_time(host, size, 0)


def _hosted(totals: StageTotals[Any]) -> bool:
    """Whether optimizer state lies on the host for any stage."""
    return bool(np.any(totals.optimizer_on_host))


def on_ranks(
    totals: StageTotals[Q], problem: Problem, layout: Layout, stage: int
) -> StageTotals[Q]:
    """The totals as stage `stage` in a layout: its slowest rank sets the pace."""
    ranks = layout.stage_ranks[stage]
    speed = slowest_speed(problem.cluster, ranks)
    return on_replicas(totals, problem, len(ranks), speed)
