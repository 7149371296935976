"""The network record that a probe's measurements make, and the times that it predicts for them.

Each measured group has a price with unknown figures (autopart/cost/collectives.py). We choose the
figures with the least sum over a robust distance of r = log(predicted / measured):

    minimise  sum of 2 d^2 (sqrt(1 + (r / d)^2) - 1)  with d = 5 %

So a short message counts as much as a long one, and twice too long as much as half as long. Errors
well above d count as their size and not as its square: one disturbed message moves little. scipy's
least squares fits the figures' logarithms. Figures that no measurement shows keep their defaults.

Rails are a whole number. It comes first: G groups at once, with one GPU of each node, take G / rails
times as long as one of them alone. Whether a switch sums is decided first too.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from autopart.cost.collectives import CollectiveName, Fabric, GroupShape, price_of
from autopart.records.network import Network
from autopart.records.readings import CollectiveReadings, NetworkReadings, SendReadings

SWITCHED = 1.1
"""Least ratio of bus bandwidths, all-reduce over all-gather, that shows a switch that sums."""
ON_RAIL = 0.9
"""Least ratio of bandwidths, other rail over same rail, that counts as equal."""
_LARGE = 1 << 20
"""Bytes of a message that shows a bandwidth."""
_SCALE = 0.05
"""Errors up to about this share count as their square."""
_PRIOR, _PRIOR_OF_FOLD = 0.01, 0.1
"""Weights of a figure's distance from its start, which decides where no measurement does.

The phase that `fold` adds to is mostly the shorter one by far, so noise would move it anywhere.
"""

_LATENCY, _RATE, _SHARE = (1e-9, 1e3), (1e3, 1e15), (1e-3, 1.0)
_LIMITS: Mapping[str, tuple[float, float]] = {
    "rail_bandwidth": _RATE, "ring_bandwidth": _RATE, "switch_bandwidth": _RATE,
    "start": _LATENCY, "step": _LATENCY, "hop": _LATENCY, "ramp": _LATENCY, "peer": _LATENCY,
    "fold": _SHARE, "tree_efficiency": _SHARE, "all_to_all_efficiency": _SHARE,
}  # fmt: skip
"""The figures that are fitted, and their least and largest values."""

Vector = NDArray[np.floating[Any]]


class _Shape(NamedTuple):
    """All measured times of one collective over one shape of group."""

    collective: CollectiveName
    group: GroupShape
    num_bytes: Vector
    seconds: Vector


def fit_network(
    measured: NetworkReadings, num_nodes: int, gpus_per_node: int, *, is_nccl: bool
) -> Network:
    """The network of `num_nodes` nodes whose prices are closest to the measured times.

    `is_nccl` says whether NCCL was measured: it has trees, sums in switches, and the steps of its rings overlap. gloo
    has none of these. Raises ValueError where no collective over several nodes was measured.
    """
    rails = rails_of(measured, gpus_per_node)
    used = [one for one in measured.collectives if shares_rails(one, gpus_per_node, rails)]
    if not any(one.nodes > 1 for one in used):
        raise ValueError("no collective over several nodes was measured")
    start = _start(used, rails, gpus_per_node, is_nccl=is_nccl)
    shapes = [
        _Shape(
            one.collective,
            GroupShape(one.ranks, one.nodes, one.ranks // one.nodes),
            np.array([float(r.num_bytes) for r in one.readings]),
            np.array([r.time for r in one.readings]),
        )
        for one in used
    ]
    found = _fitted(start, shapes, num_nodes, gpus_per_node)
    return msgspec.structs.replace(
        found, off_rail=_off_rail(measured), slowdown=_slowdown(measured)
    )


def rails_of(measured: NetworkReadings, gpus_per_node: int) -> int:
    """How many rails the GPUs of a node share evenly, at most `gpus_per_node`.

    It compares groups with one GPU of each node, all at once and one alone. Without any it compares
    sends over the same rail.
    """
    groups: list[CollectiveReadings | SendReadings] = [
        one for one in measured.collectives if 1 < one.nodes == one.ranks
    ]
    sends: list[CollectiveReadings | SendReadings] = [
        one for one in measured.sends if one.path == "same rail"
    ]
    ratios = _ratios(groups, gpus_per_node) or _ratios(sends, gpus_per_node)
    if not ratios:
        return gpus_per_node
    together = statistics.median(ratios)
    return min(
        (rails for rails in range(1, gpus_per_node + 1) if gpus_per_node % rails == 0),
        key=lambda rails: (abs(np.log(together * rails / gpus_per_node)), -rails),
    )


def _ratios(found: Sequence[CollectiveReadings | SendReadings], gpus_per_node: int) -> list[float]:
    """Seconds per byte of all at once over those of one alone, between the two largest sizes.

    Differences leave latencies out, which all at once and one alone have alike.
    """
    ratios: list[float] = []
    for one in found:
        for other in found:
            if (one.at_once, other.at_once) != (1, gpus_per_node) or _kind(one) != _kind(other):
                continue
            alone = {r.num_bytes: r.time for r in one.readings}
            common = [(r.time, alone[r.num_bytes]) for r in other.readings if r.num_bytes in alone]
            if gpus_per_node > 1 and len(common) > 1:
                (before, alone_before), (after, alone_after) = common[-2:]
                if after > before and alone_after > alone_before:
                    ratios.append((after - before) / (alone_after - alone_before))
    return ratios


def _kind(one: CollectiveReadings | SendReadings) -> tuple[str | int, ...]:
    if isinstance(one, SendReadings):
        return (one.path,)
    return (one.collective, one.ranks, one.nodes)


def shares_rails(one: CollectiveReadings | SendReadings, gpus_per_node: int, rails: int) -> bool:
    """Whether the price is meant for it: the groups at once had all GPUs that share a rail.

    A lone group is faster than its price where GPUs share rails.
    """
    if isinstance(one, SendReadings):
        inside, busy = one.path == "same node", one.at_once
    else:
        inside, busy = one.nodes == 1, one.at_once * (one.ranks // one.nodes)
    return inside or rails >= gpus_per_node or busy >= gpus_per_node


def _start(
    used: Sequence[CollectiveReadings], rails: int, gpus_per_node: int, *, is_nccl: bool
) -> Network:
    """A first network: bandwidths from the largest messages, latencies that are usual."""
    over = min((one for one in used if one.nodes > 1), key=_few_per_node)
    per_gpu = _bus_bandwidth(over) / (over.ranks // over.nodes)
    inside = [one for one in used if one.nodes == 1 and one.collective != "all_to_all"]
    # The all-gather shows the ring, also where a switch sums.
    ring = max(inside, key=lambda one: (one.ranks, one.collective == "all_gather"), default=None)
    start = Network(
        rails=rails,
        rail_bandwidth=per_gpu * gpus_per_node / rails,
        ring_bandwidth=per_gpu * gpus_per_node if ring is None else _bus_bandwidth(ring),
    )
    if not is_nccl:
        return msgspec.structs.replace(start, trees=False, serial_steps=True)
    bandwidth, ranks = _switch(inside, start.switch_ranks)
    return msgspec.structs.replace(start, switch_bandwidth=bandwidth, switch_ranks=ranks)


def _switch(inside: Sequence[CollectiveReadings], usual: int) -> tuple[float | None, int]:
    """Bus bandwidth of a switch that sums, and for how many ranks it does; None without one."""
    found = {(one.collective, one.ranks): one for one in inside}
    bandwidth, ranks = None, usual
    for n in sorted({n for _, n in found}, reverse=True):
        gathered, reduced = found.get(("all_gather", n)), found.get(("all_reduce", n))
        if gathered is None or reduced is None:
            continue
        # Twice the bytes pass a ring in an all-reduce.
        faster = [
            2 * a.time / b.time for a, b in zip(gathered.readings, reduced.readings, strict=False)
        ]
        if statistics.median(faster[-3:]) < SWITCHED:
            # It sums from some number above n on. The usual number is taken where it can be right.
            return bandwidth, ranks if bandwidth is None else min(ranks, max(usual, n + 1))
        bandwidth, ranks = bandwidth or _bus_bandwidth(reduced), n
    return bandwidth, ranks


def _few_per_node(one: CollectiveReadings) -> tuple[int, bool]:
    return one.ranks // one.nodes, one.collective != "all_gather"


def _bus_bandwidth(one: CollectiveReadings) -> float:
    """Bytes per second over each ring step, for the largest message."""
    turns = 2 if one.collective == "all_reduce" else 1
    largest = one.readings[-1]
    return turns * (one.ranks - 1) / one.ranks * largest.num_bytes / largest.time


def _fitted(start: Network, shapes: Sequence[_Shape], num_nodes: int, per_node: int) -> Network:
    """The network with the least robust distance, from `start` on."""
    from scipy.optimize import least_squares  # a late import: only a probe needs it

    names = [name for name in _LIMITS if getattr(start, name) is not None]
    low, high = np.log([_LIMITS[name] for name in names]).T
    first = np.log([max(getattr(start, name), _LIMITS[name][0]) for name in names])
    first = np.clip(first, low, high)
    prior = np.array([_PRIOR_OF_FOLD if name == "fold" else _PRIOR for name in names])

    def network_at(at: Vector) -> Network:
        return msgspec.structs.replace(
            start, **{name: float(own) for name, own in zip(names, np.exp(at), strict=True)}
        )

    def distances(at: Vector) -> Vector:
        fabric = Fabric(network_at(at), per_node, num_nodes)
        errors = np.concatenate(
            [
                np.log(price_of(fabric, s.collective, s.group).seconds(s.num_bytes) / s.seconds)
                for s in shapes
            ]
        )
        # Their squares are the terms of the robust distance, written without a difference of near numbers.
        robust = errors * np.sqrt(2 / (1 + np.sqrt(1 + (errors / _SCALE) ** 2)))
        return np.concatenate([robust, prior * (at - first)])

    found = least_squares(distances, first, bounds=(low, high), xtol=1e-10, ftol=1e-12, gtol=1e-12)
    return network_at(np.clip(found.x, low, high))


def _off_rail(measured: NetworkReadings) -> float:
    """Bandwidth from one rail to another over that on the same rail; 1 where they are about equal."""
    times = {
        (one.path, one.at_once, r.num_bytes): r.time for one in measured.sends for r in one.readings
    }
    ratios = [
        time / times["other rail", at_once, size]
        for (path, at_once, size), time in times.items()
        if path == "same rail" and size >= _LARGE and ("other rail", at_once, size) in times
    ]
    ratio = statistics.median(ratios) if ratios else 1.0
    return 1.0 if ratio >= ON_RAIL else ratio


def _slowdown(measured: NetworkReadings) -> float:
    """Share by which compute takes longer beside a sync; the default where it was not measured."""
    if measured.compute is None:
        return Network.__struct_defaults__[-1]
    return min(10.0, max(0.0, measured.compute.beside / measured.compute.alone - 1.0))
