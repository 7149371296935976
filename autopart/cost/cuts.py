"""Each place where a layer graph can be cut, and the totals for each stage between two cuts.

Symbols   D_i     the layers ahead of cut i, a downset; D_0 is empty, the last one has every layer
          [i, j]  the stage between cuts i and j: D_j - D_i, where D_j includes D_i

A chain with n layers has n + 1 cuts. A graph with branches has one cut for each downset, which can be exponentially
many. Past a limit, only the prefixes in the graph's own order are listed. Then the list is not complete.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import Array, StageTotals, Traffic, layer_sizes, plain_totals
from autopart.cost.stages import CutSums, StagesBetweenCuts, in_a_row
from autopart.cost.transients import has_split_backward
from autopart.cost.workspaces import workspaces
from autopart.downsets import downsets_of
from autopart.records.layer_graph import LayerGraph, edges, positions
from autopart.records.layouts import Partition
from autopart.records.problem import Demands

MOST_CUTS = 600
"""The most cuts that are all listed: matrices over pairs of cuts then stay below 3 MB each."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cuts:
    """N cuts, smaller downsets first, and all stages between two cuts."""

    ahead: npt.NDArray[np.bool_]
    """Whether layer l lies ahead of cut i, shape (N, n)."""
    nested: npt.NDArray[np.bool_]
    """Whether [i, j] is a stage with at least one layer, shape (N, N)."""
    complete: bool
    """Whether the graph has no other cuts."""
    totals: StageTotals[Array]
    """Matrices that broadcast to (N, N). Entries where there is no stage mean nothing."""


@functools.lru_cache(maxsize=2)
def all_cuts(graph: LayerGraph, most: int = MOST_CUTS) -> Cuts:
    """All cuts in a graph, or only the prefixes in its order where there are more than `most`."""
    # Step 1: the downsets.
    n = len(graph.layers)
    found = downsets_of(n, edges(graph), max(most, n + 1))
    complete = found is not None
    if found is None:
        found = [(1 << size) - 1 for size in range(n + 1)]
    ahead = np.array([[mask >> l & 1 for l in range(n)] for mask in found], dtype=bool)
    # Step 2: the n + 1 prefixes are always cuts: where there are n + 1 cuts, they are the prefixes.
    return _with_stages(graph, ahead, complete=complete, prefixes=len(found) == n + 1)


def cuts_along(graph: LayerGraph, partition: Partition) -> Cuts:
    """The cuts of one partition only, whose edges all go forward; the list is not complete."""
    ahead = np.zeros((len(partition) + 1, len(graph.layers)), dtype=bool)
    for at, stage in enumerate(partition, 1):
        ahead[at] = ahead[at - 1]
        ahead[at, list(stage)] = True
    return cuts_between(graph, ahead)


def cuts_between(graph: LayerGraph, ahead: npt.NDArray[np.bool_]) -> Cuts:
    """Some cuts, smaller downsets first, with the layers ahead of each; the list is not complete."""
    return _with_stages(graph, ahead, complete=False, prefixes=False)


def _with_stages(
    graph: LayerGraph, ahead: npt.NDArray[np.bool_], *, complete: bool, prefixes: bool
) -> Cuts:
    """The cuts with the totals between them; `prefixes` where every prefix is a cut, in its order."""
    # No layer ahead of a stage's first cut lies behind its second.
    outside = ahead.astype(float) @ (~ahead).T.astype(float)
    sizes = ahead.sum(axis=1)
    nested = (outside == 0) & (sizes[:, None] < sizes[None, :])
    stages = StagesBetweenCuts(ahead, paired=True, prefixes=prefixes)
    return Cuts(ahead, nested, complete, _totals(graph, stages))


def list_all(cuts: Cuts, num_stages: int) -> bool:
    """Whether paths over the cuts give each partition into `num_stages` stages."""
    return cuts.complete or num_stages == 1


def partition_of(cuts: Cuts, path: Sequence[int]) -> Partition:
    """The stages between a path's cuts; the path starts at the first cut and ends at the last."""
    pairs = itertools.pairwise(path)
    return tuple(
        tuple(int(l) for l in np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i])) for i, j in pairs
    )


def allowed(cuts: Cuts, graph: LayerGraph, demands: Demands, stage: int) -> npt.NDArray[np.bool_]:
    """Whether [i, j] may be stage number `stage` under the user's pins and groups, shape (N, N)."""
    place, may = positions(graph), cuts.nested

    def holds(name: str) -> npt.NDArray[np.bool_]:
        at = place[name]
        return cuts.ahead[None, :, at] & ~cuts.ahead[:, None, at]

    for pin in demands.pins:
        may = may & (holds(pin.layer) == (pin.stage == stage))
    for group in demands.same_stage:
        inside = sum(holds(name).astype(int) for name in group)
        may = may & ((inside == 0) | (inside == len(group)))
    for group in demands.different_stage:
        may = may & (sum(holds(name).astype(int) for name in group) <= 1)
    return may


def keeps_pins(cuts: Cuts, graph: LayerGraph, demands: Demands, path: Sequence[int]) -> bool:
    """Whether each stage along a path is allowed under the user's pins and groups."""
    return all(
        allowed(cuts, graph, demands, stage)[i, j]
        for stage, (i, j) in enumerate(itertools.pairwise(path))
    )


def partition_keeps_pins(partition: Partition, graph: LayerGraph, demands: Demands) -> bool:
    """Whether a partition keeps the user's pins and groups, whatever its cuts."""
    place = positions(graph)
    home = {layer: stage for stage, layers in enumerate(partition) for layer in layers}
    homes = [[home[place[name]] for name in group] for group in demands.same_stage]
    apart = [[home[place[name]] for name in group] for group in demands.different_stage]
    return (
        all(home[place[pin.layer]] == pin.stage for pin in demands.pins)
        and all(len(set(own)) == 1 for own in homes)
        and all(len(set(own)) == len(own) for own in apart)
    )


def some_totals(totals: StageTotals[Array], chosen: npt.NDArray[np.bool_]) -> StageTotals[Array]:
    """Some entries of a stage's totals."""
    fields: dict[str, Any] = {
        name: Traffic(*(own[chosen] for own in each)) if isinstance(each, Traffic) else each[chosen]
        for name, each in totals._asdict().items()
    }
    return StageTotals(**fields)


def totals_at(
    totals: StageTotals[Array], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> StageTotals[Array]:
    """Totals for stages [start, end], one entry for each path."""
    received = Traffic(*(each[starts, 0] for each in totals.received))
    sent = Traffic(*(each[0, ends] for each in totals.sent))
    fields = {
        name: each[starts, ends]
        for name, each in totals._asdict().items()
        if name not in ("received", "sent")
    }
    return StageTotals(**fields, received=received, sent=sent)


def count_inside(ahead: npt.NDArray[np.bool_], members: Sequence[int]) -> npt.NDArray[np.int64]:
    """The number of `members` on each stage, shape (N, N)."""
    upto = ahead[:, members].sum(axis=1)
    return upto[None, :] - upto[:, None]


@functools.lru_cache(maxsize=256)
def stage_totals(graph: LayerGraph, partition: Partition) -> tuple[StageTotals[float], ...]:
    """The totals for each stage in a partition whose edges all go forward.

    Seconds are floats, bytes are ints. The totals are those between the partition's own cuts.
    """
    totals = _totals(graph, in_a_row(graph, partition))
    columns: list[list[Any]] = [
        [Traffic(*own) for own in zip(*(each.tolist() for each in field), strict=True)]
        if isinstance(field, Traffic)
        else field.tolist()
        for field in totals
    ]
    return tuple(StageTotals(*own) for own in zip(*columns, strict=True))


def _totals(graph: LayerGraph, stages: StagesBetweenCuts) -> StageTotals[Array]:
    """The totals for stages between cuts: the sums, then the maxima."""
    totals = plain_totals(graph, CutSums(graph, stages))
    work = workspaces(graph, stages)
    return totals._replace(
        workspace_bytes=work.whole,
        first_backward_bytes=work.first_backward,
        widest_trainable=stages.largest(layer_sizes(graph).trained_elements),
        waiting_bytes=_waiting(graph, stages, totals.stash_bytes),
        input_grad_workspace_bytes=work.input_grad,
        weight_grad_workspace_bytes=work.weight_grad,
    )


def _waiting(graph: LayerGraph, stages: StagesBetweenCuts, stash_bytes: Array) -> Array:
    """Bytes that one microbatch keeps from I to W.

    Several layers may need the same value. Together they need at most all values in the stash.
    """
    if not has_split_backward(graph):
        return stash_bytes
    sizes = layer_sizes(graph)
    values = stash_bytes - stages.bytes(sizes.stash_bytes)
    needed = stages.bytes(sizes.waiting_value_bytes)
    return stages.bytes(sizes.waiting_bytes) + np.minimum(values, needed)
