"""Better partitions of graphs with too many cuts to list, among cuts near those of the best one.

The cuts near a partition are downsets that differ from one of its cuts by a few layers. Some of
them, evenly spread by the work ahead, and those that send least, make a list. On the list the chain
solver is exact. Its best partition is the next start, as long as the step gets shorter.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from autopart.cost.cuts import Cuts, cuts_between, partition_of
from autopart.downsets import Flags, masks_of_edges, unpack
from autopart.records.layer_graph import LayerGraph, edges, positions
from autopart.records.layouts import Partition
from autopart.search.incumbent import ROUNDING
from autopart.search.layout_search import LayoutSearch
from autopart.solvers import cuts_dp
from autopart.stopping.time_limit import check_time, passed

MOST_LISTED = 400
"""The most cuts on a list."""

TRIED_FOR_EACH = 6
"""Downsets that are looked at for each cut on the list."""

COST_OF_MOVE = 0.05
"""The part of a mean layer's work for which a layer more is moved."""


def improve_nearby(found: LayoutSearch) -> None:
    """Take better partitions near the best one on its layout, while that makes it better."""
    best = found.best.decision
    while best is not None and len(best.partition) > 1 and not passed(found.deadline):
        before, layout = found.best.value, best.layout
        cuts = _cuts_near(found.problem.graph, best.partition)
        bounds = found.objective.bounds.of_layout(found.problem, layout, cuts)
        by_bounds = cuts_dp.best_path(bounds.stages, cuts.nested)
        paths = [] if by_bounds is None else [by_bounds.path]
        for path in dict.fromkeys([*paths, *found.objective.proposals(layout, cuts)]):
            found.take(layout, partition_of(cuts, path), "dp")
        if found.best.value >= before * (1 - ROUNDING):
            return
        best = found.best.decision


def _cuts_near(graph: LayerGraph, partition: Partition) -> Cuts:
    """The cuts of a partition, and some that differ from them by a few layers."""
    n, work = len(graph.layers), _work_of(graph)
    arcs = edges(graph)
    each = MOST_LISTED // (len(partition) - 1)
    masks = {0, (1 << n) - 1}
    own = 0
    for stage in partition[:-1]:
        own |= sum(1 << layer for layer in stage)
        tried = _downsets_near(n, arcs, work, own, TRIED_FOR_EACH * each)
        masks |= {own, *_spread(graph, tried, work, each)}
    ordered = sorted(masks, key=lambda mask: (mask.bit_count(), mask))
    return cuts_between(graph, unpack(ordered, n))


def _work_of(graph: LayerGraph) -> list[float]:
    """Seconds of each layer for one microbatch."""
    return [la.forward_time + la.input_grad_time + la.weight_grad_time for la in graph.layers]


def _downsets_near(
    n: int, arcs: Sequence[tuple[int, int]], work: Sequence[float], start: int, most: int
) -> list[int]:
    """At most so many downsets as bits, the nearest to `start` by work first."""
    ahead, behind = masks_of_edges(n, arcs)
    step = COST_OF_MOVE * sum(work) / n

    def moves(mask: int) -> Iterator[tuple[int, float]]:
        for layer in range(n):
            bit = 1 << layer
            if mask & bit and not behind[layer] & mask:
                yield mask ^ bit, -work[layer]
            elif not mask & bit and not ahead[layer] & ~mask:
                yield mask | bit, work[layer]

    seen, found = {start}, list[int]()
    heap = [(0.0, 0, start, 0.0)]
    while heap and len(found) < most:
        check_time()
        _, count, mask, more = heapq.heappop(heap)
        found.append(mask)
        for near, change in moves(mask):
            if near not in seen and 0 < near.bit_count() < n:
                seen.add(near)
                own = more + change
                heapq.heappush(heap, (abs(own) + (count + 1) * step, count + 1, near, own))
    return found


def _spread(
    graph: LayerGraph, masks: Sequence[int], work: Sequence[float], most: int
) -> Iterator[int]:
    """At most so many of some downsets: from each part of their range of work the cheapest one."""
    ahead = unpack(list(masks), len(work))
    before = ahead @ np.array(work)
    part = np.floor((before - before.min()) / (np.ptp(before) or 1.0) * (most - 1))
    sent = _sent_bytes(graph, ahead)
    seen = set[float]()
    for at in np.lexsort((sent, part)).tolist():
        if part[at] not in seen:
            seen.add(float(part[at]))
            yield masks[at]


def _sent_bytes(graph: LayerGraph, ahead: Flags) -> npt.NDArray[np.float64]:
    """Bytes of the values that cross each cut."""
    place, sent = positions(graph), np.zeros(len(ahead))
    for value in graph.values:
        if value.consumers:
            read = ahead[:, [place[name] for name in value.consumers]].all(axis=1)
            sent += value.bytes * (ahead[:, place[value.producer]] & ~read)
    return sent
