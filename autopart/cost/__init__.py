"""Seconds and bytes: the only room in which they are computed.

The formulas work on one stage (plain numbers), on all stages between two cuts of a graph at once
(numpy matrices) and on the affine expressions of an integer program, so that a solver and the
evaluation of its plan cannot disagree.
"""

from autopart.cost.choices import best_ways, better_on_host, treated_stages
from autopart.cost.links import host_way, send_time
from autopart.cost.on_ranks import on_ranks, on_replicas
from autopart.cost.rank_bytes import (
    bytes_beside_stash,
    fits_on_ranks,
    held_by,
    holding_of,
    holding_of_one,
    in_flight,
    largest_part,
    limits_of,
    memory,
    most_in_flight,
    peaks_fit,
    rank_memory,
    rank_peaks,
    total,
    with_versions,
    within,
)
from autopart.cost.stages import (
    bottleneck_time,
    busy_time,
    cut_links,
    links_around,
    occupied_time,
    plan_bottleneck,
    predict,
    steady_period,
    traffic_times,
)
from autopart.cost.syncs import (
    all_reduce_time,
    gradient_bytes,
    sync_times,
    time_after_backward,
    update_share,
)

__all__ = [
    "all_reduce_time",
    "best_ways",
    "better_on_host",
    "bottleneck_time",
    "busy_time",
    "bytes_beside_stash",
    "cut_links",
    "fits_on_ranks",
    "gradient_bytes",
    "held_by",
    "holding_of",
    "holding_of_one",
    "host_way",
    "in_flight",
    "largest_part",
    "limits_of",
    "links_around",
    "memory",
    "most_in_flight",
    "occupied_time",
    "on_ranks",
    "on_replicas",
    "peaks_fit",
    "plan_bottleneck",
    "predict",
    "rank_memory",
    "rank_peaks",
    "send_time",
    "steady_period",
    "sync_times",
    "time_after_backward",
    "total",
    "traffic_times",
    "treated_stages",
    "update_share",
    "with_versions",
    "within",
]
