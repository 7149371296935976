"""The loads of all stages between two cuts with their layers treated as is best.

What is best for a stage depends on the bytes that are left beside its state, so on its place and layout:
of the choices that fit, the one that keeps its rank busy for the fewest seconds. Where nothing waits for the
host, no other choice of the same stage makes any step faster: extra seconds only lengthen the stage's backward,
and no action of an order starts earlier where another takes longer. Waits lengthen the forward as well, so
that of two choices one may have the shorter forward and the other the shorter backward: then the rule decides,
and the certificate says so.
"""

import numpy as np

from autopart.cluster import slowest_speed
from autopart.cost import better_on_host, host_way, limits_of, memory, total
from autopart.cuts import Cuts
from autopart.frontier import CHANGED_FIELDS, Growth, Limits, most_points, treat
from autopart.layouts import Layout
from autopart.problem import Problem
from autopart.stage_load import Number, StageLoad
from autopart.stage_points import StagePoints
from autopart.ways import Steps, allowed_ways, can_treat, leaves_choice, most_freed, places_of_state

KEPT_ENTRIES = 20_000_000
"""Entries of the matrices that are kept for another layout, five for each: some hundred megabytes."""


def treated(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageLoad:
    """`cuts.loads` as stage `stage` of a layout, with the layers treated as is best there. Of a stage that
    does not fit in any way, and of one that may keep everything, the load is the untreated one."""
    if not can_treat(layout.schedule) or not leaves_choice(problem.demands):
        return cuts.loads
    places = [
        _treated(problem, layout, _placed(cuts, on_host=on_host), stage)
        for on_host in places_of_state(problem.demands)
    ]
    if len(places) == 1:
        return places[0]
    limits = limits_of(problem, layout, stage)
    speed = slowest_speed(problem.cluster, layout.stage_ranks[stage])
    key = ("place", _what_prices(problem), len(layout.stage_ranks[stage]), limits, speed)
    if key not in cuts.made:
        hosted = better_on_host(problem, layout, stage, *places)
        cuts.made[key] = _chosen(hosted, *places)
        _forget_some(cuts)
    return cuts.made[key]


def _placed(cuts: Cuts, *, on_host: bool) -> Cuts:
    """The cuts with the optimizer's state of all stages in one place."""
    if not on_host:
        return cuts
    if "hosted" not in cuts.made:
        ones = np.ones(cuts.nested.shape, dtype=np.int64)
        cuts.made["hosted"] = cuts._replace(
            loads=cuts.loads._replace(optimizer_on_host=ones), made={}
        )
    return cuts.made["hosted"]


def _chosen(hosted: Number, device: StageLoad, host: StageLoad) -> StageLoad:
    """Of every stage one of two loads; what crosses its cuts is the same."""
    fields = {
        name: np.where(hosted, there, here)
        for (name, here), there in zip(device._asdict().items(), host, strict=True)
        if name not in ("received", "sent")
    }
    return device._replace(**fields)


def _treated(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageLoad:
    """`treated` with the optimizer's state where the loads have it."""
    replicas, limits = len(layout.stage_ranks[stage]), limits_of(problem, layout, stage)
    speed = slowest_speed(problem.cluster, layout.stage_ranks[stage])
    key = (_what_prices(problem), replicas, limits, speed)
    if key not in cuts.made:
        wanted = _undecided(problem, cuts, replicas, limits)
        cuts.made[key] = _with_best(
            problem, cuts, replicas, limits, wanted, _points(problem, cuts, speed)
        )
        _forget_some(cuts)
    return cuts.made[key]


def least_loads(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageLoad:
    """`cuts.loads` as stage `stage` of a layout, with the fewest bytes that any treatment leaves. Its times
    mean nothing."""
    if not can_treat(layout.schedule):
        return cuts.loads
    limits = limits_of(problem, layout, stage)
    return least_bytes_loads(problem, cuts, len(layout.stage_ranks[stage]), limits)


def least_bytes_loads(problem: Problem, cuts: Cuts, replicas: int, limits: Limits) -> StageLoad:
    """`least_loads` for each of so many replicas, with the limits of its host and whatever
    limit of its device."""
    if not leaves_choice(problem.demands):
        return cuts.loads
    places = [
        _least_bytes_loads(problem, _placed(cuts, on_host=on_host), replicas, limits)
        for on_host in places_of_state(problem.demands)
    ]
    if len(places) == 1:
        return places[0]
    (here, size), (there, size_there) = (
        (use.host <= (np.inf if limits.host_bytes is None else limits.host_bytes), total(use))
        for use in (memory(own, problem, replicas, limits.held) for own in places)
    )
    return _chosen(there & ((size_there < size) | ~here), *places)


def _least_bytes_loads(problem: Problem, cuts: Cuts, replicas: int, limits: Limits) -> StageLoad:
    """`least_bytes_loads` with the optimizer's state where the loads have it."""
    limits = limits._replace(device_bytes=0)
    key = (_what_prices(problem), replicas, limits)
    if key not in cuts.made:
        points = _points(problem, cuts, None)
        cuts.made[key] = _with_best(problem, cuts, replicas, limits, cuts.nested, points)
        _forget_some(cuts)
    return cuts.made[key]


def _what_prices(problem: Problem) -> tuple[object, ...]:
    """All that a treatment depends on but the graph, which its cuts stand for."""
    names = [name for name in problem.__struct_fields__ if name != "graph"]
    return tuple(getattr(problem, name) for name in names)


def _points(problem: Problem, cuts: Cuts, speed: float | None) -> StagePoints:
    """The frontiers of all stages on ranks of a speed; those of bytes alone where it is None."""
    demands, cluster = problem.demands, problem.cluster
    asked = (
        demands.recompute,
        demands.offload,
        demands.recompute_layers,
        demands.selective_layers,
        demands.offload_layers,
        demands.keep_layers,
    )
    hosted = cluster.host_memory_bytes is not None
    key = ("points", asked, cluster.host_link, hosted, speed)
    if key not in cuts.made:
        steps = Steps(problem.graph, demands, host_way(cluster.host_link, speed or 1.0))
        most = most_points(problem.graph.layers)
        growth = Growth(timed=speed is not None, hosted=hosted, most_points=most)
        cuts.made[key] = StagePoints(growth, steps, cuts.ahead)
    return cuts.made[key]


def _undecided(problem: Problem, cuts: Cuts, replicas: int, limits: Limits) -> Number:
    """Boolean, shape (N, N): the stages that may fit in some way, but not or may not keep everything."""
    kept = total(memory(cuts.loads, problem, replicas, limits.held))
    freed, must = _open_to(problem, cuts)
    least = kept - limits.held * freed
    return cuts.nested & (least <= limits.device_bytes) & (must | (kept > limits.device_bytes))


def _open_to(problem: Problem, cuts: Cuts) -> tuple[Number, Number]:
    """For every stage the most bytes of a microbatch that its ways may free, and whether it may not simply
    keep everything."""
    key = ("open", problem.demands)
    if key not in cuts.made:
        graph, demands = problem.graph, problem.demands
        freed = cuts.ahead @ np.array(most_freed(graph, demands), dtype=float)
        bound = ["keep" not in allowed_ways(layer, demands) for layer in graph.layers]
        must = cuts.ahead @ np.array(bound, dtype=float)
        cuts.made[key] = freed[None, :] - freed[:, None], must[None, :] > must[:, None]
    return cuts.made[key]


def _with_best(
    problem: Problem, cuts: Cuts, replicas: int, limits: Limits, wanted: Number, points: StagePoints
) -> StageLoad:
    """`cuts.loads` with the best choice of each wanted stage."""
    at = np.nonzero(wanted)
    if not len(at[0]):
        return cuts.loads
    loads = cuts.loads
    beside = total(memory(loads, problem, replicas, limits.held)) - loads.workspace_bytes
    best = points.best(at[0], at[1], beside[at], limits)
    full = {name: np.broadcast_to(getattr(loads, name), wanted.shape) for name in CHANGED_FIELDS}
    changed = treat(loads._replace(**{name: matrix[at] for name, matrix in full.items()}), best)
    return loads._replace(
        **{name: _with_entries(full[name], at, getattr(changed, name)) for name in CHANGED_FIELDS}
    )


def _with_entries(matrix: Number, at: tuple[Number, ...], entries: Number) -> Number:
    matrix = np.array(matrix)
    matrix[at] = entries
    return matrix


def _forget_some(cuts: Cuts) -> None:
    """Drop the loads of other layouts where they are many; frontiers stay."""
    loads = [key for key, made in cuts.made.items() if isinstance(made, StageLoad)]
    if len(loads) * cuts.nested.size > KEPT_ENTRIES:
        for key in loads[:-1]:
            del cuts.made[key]
