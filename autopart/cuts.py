"""Every place where a layer graph can be cut, and the load of every stage between two cuts.

Symbols   D_i     the layers ahead of cut i: a downset, closed under predecessors; D_0 is empty, the
                  last holds every layer
          [i, j]  the stage between cuts i and j, D_j - D_i, where D_i lies inside D_j

A chain of n layers has n + 1 cuts. A graph with branches has one for each of its downsets, up to
exponentially many: past a limit only the prefixes of the graph's own order are listed, and the list is
then not complete.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autopart.graph import LayerGraph, Value, edges, positions
from autopart.problem import Demands
from autopart.stage_load import (
    Number,
    Partition,
    StageLoad,
    Traffic,
    Transient,
    Waiting,
    counts_gradients,
    has_halves,
    input_grad_transients,
    may_wait,
    weight_grad_transients,
    whole_transients,
)

MOST_CUTS = 600
"""Cuts up to which all are listed: matrices over pairs of cuts then stay below 3 MB each."""


class Cuts(NamedTuple):
    """N cuts in the order of their sizes, and all stages between two of them."""

    ahead: Number
    """Boolean, shape (N, n): whether layer l lies ahead of cut i."""
    nested: Number
    """Boolean, shape (N, N): whether [i, j] is a stage, with at least one layer."""
    complete: bool
    """Whether these are all cuts of the graph."""
    loads: StageLoad
    """Matrices of shape (N, N), or that broadcast to it; entries that are no stage mean nothing."""
    made: dict[object, Any]
    """What was computed of these cuts already (autopart/treated.py)."""


@functools.lru_cache(maxsize=2)
def all_cuts(graph: LayerGraph, most: int = MOST_CUTS) -> Cuts:
    """Every cut of a graph; only the prefixes of its order where there are more than `most`."""
    n = len(graph.layers)
    found = _downsets(graph, max(most, n + 1))
    complete = found is not None
    if found is None:
        found = [(1 << size) - 1 for size in range(n + 1)]
    ahead = np.array([[mask >> l & 1 for l in range(n)] for mask in found], dtype=bool)
    outside = ahead.astype(float) @ (~ahead).T.astype(float)
    sizes = ahead.sum(axis=1)
    nested = (outside == 0) & (sizes[:, None] < sizes[None, :])
    return Cuts(ahead, nested, complete, _cut_loads(graph, ahead), {})


def list_all(cuts: Cuts, num_stages: int) -> bool:
    """Whether the paths over the cuts are all partitions into `num_stages` stages."""
    return cuts.complete or num_stages == 1


def partition_of(cuts: Cuts, path: Sequence[int]) -> Partition:
    """The stages between the cuts of a path, which starts at the first cut and ends at the last."""
    pairs = itertools.pairwise(path)
    return tuple(
        tuple(int(l) for l in np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i])) for i, j in pairs
    )


def allowed(cuts: Cuts, graph: LayerGraph, demands: Demands, stage: int) -> Number:
    """Boolean, shape (N, N): whether [i, j] may be stage number `stage` under the user's pins."""
    place, may = positions(graph), cuts.nested

    def holds(name: str) -> Number:
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


def _downsets(graph: LayerGraph, most: int) -> list[int] | None:
    """All downsets as bit masks, smallest first; None where there are more than `most`."""
    n = len(graph.layers)
    needs = [0] * n
    for u, w in edges(graph):
        needs[w] |= 1 << u
    level, found = {0}, [0]
    for _ in range(n):
        level = {
            mask | 1 << l
            for mask in level
            for l in range(n)
            if not mask >> l & 1 and needs[l] & ~mask == 0
        }
        found += sorted(level)
        if len(found) > most:
            return None
    return found


def _cut_loads(graph: LayerGraph, ahead: Number) -> StageLoad:
    layers, place = graph.layers, positions(graph)

    def sums(per_layer: Sequence[float]) -> Number:
        upto = ahead @ np.asarray(per_layer)
        return upto[None, :] - upto[:, None]

    def whole(per_layer: Sequence[int]) -> Number:
        return np.rint(sums([float(size) for size in per_layer])).astype(np.int64)

    values = [v for v in graph.values if v.consumers]
    made = ahead[:, [place[v.producer] for v in values]]
    read = [ahead[:, [place[c] for c in v.consumers]].all(axis=1) for v in values]
    crosses = made & ~np.stack(read, axis=1) if values else made
    kept = [0] * len(layers)
    for v in values:
        kept[place[v.producer]] += v.bytes if v.kept_by else 0
    inner = whole([la.stash_bytes + more for la, more in zip(layers, kept, strict=True)])
    crossing = _crossing(crosses, values)
    free = np.array([0 if v.kept_by else v.bytes for v in values], dtype=float)
    sent_only = np.rint((~made * free) @ crosses.T).astype(np.int64)
    copies = [_copies(ahead, [place[name] for name in set(t.layers)]) for t in graph.tied]

    def once(per_layer: Sequence[int], per_tied: Sequence[int]) -> Number:
        spare = [size * more for size, more in zip(per_tied, copies, strict=True)]
        return whole(per_layer) - sum(spare, start=np.int64(0))

    stash = inner + crossing[0][:, None] + sent_only
    pending = may_wait(graph)
    nothing = np.zeros((len(ahead), len(ahead)), dtype=np.int64)
    return StageLoad(
        forward_time=sums([la.forward_time for la in layers]),
        backward_time=sums([la.input_grad_time + la.weight_grad_time for la in layers]),
        weight_grad_time=sums([la.weight_grad_time for la in layers]),
        split_time=sums([la.split_time for la in layers]),
        update_time=sums([la.update_time for la in layers]),
        weight_bytes=once(
            [la.param_bytes + la.buffer_bytes for la in layers], [t.param_bytes for t in graph.tied]
        ),
        grad_bytes=once([la.grad_bytes for la in layers], [t.grad_bytes for t in graph.tied]),
        num_trainable=once(
            [la.num_trainable for la in layers], [t.num_trainable for t in graph.tied]
        ),
        stash_bytes=stash,
        inner_stash_bytes=inner,
        workspace_bytes=_transients(ahead, whole_transients(graph), pending, _waits(graph, ahead)),
        input_bytes=_read(graph, ahead),
        received=Traffic(*(what[:, None] for what in crossing)),
        sent=Traffic(*(what[None, :] for what in crossing)),
        host_bytes=nothing,
        widest_trainable=_largest(ahead, [la.num_trainable for la in layers]),
        optimizer_on_host=nothing,
        waiting_bytes=_waiting(graph, whole, stash),
        input_grad_workspace_bytes=_transients(ahead, input_grad_transients(graph), pending),
        weight_grad_workspace_bytes=_transients(ahead, weight_grad_transients(graph), pending),
        relayed_grad_bytes=_relayed(graph, ahead),
    )


def _crossing(crosses: Number, values: Sequence[Value]) -> list[Number]:
    """What each cut is crossed by, as `Traffic` has it."""
    sizes = np.array([v.bytes for v in values], dtype=float)
    back = np.array([v.has_gradient for v in values], dtype=float)
    each = (sizes, np.ones(len(values)), sizes * back, back)
    return [np.rint(crosses @ what).astype(np.int64) for what in each]


def _waiting(graph: LayerGraph, whole: Callable[[Sequence[int]], Number], stash: Number) -> Number:
    """What one microbatch of every stage keeps from I to W; `whole` sums over the layers of each."""
    halves = [la.halves for la in graph.layers if la.halves is not None]
    if not has_halves(graph):
        return stash
    values = stash - whole([la.stash_bytes for la in graph.layers])
    needed = whole([of.waiting_value_bytes for of in halves])
    return whole([of.waiting_bytes for of in halves]) + np.minimum(values, needed)


def _read(graph: LayerGraph, ahead: Number) -> Number:
    """Bytes of the batch that every stage reads."""
    place = positions(graph)
    each = [
        i.bytes * (count_inside(ahead, [place[c] for c in set(i.consumers)]) > 0)
        for i in graph.inputs
    ]
    return sum(each, start=np.zeros((len(ahead), len(ahead)), dtype=np.int64))


def count_inside(ahead: Number, members: Sequence[int]) -> Number:
    """How many of some layers each stage holds."""
    upto = ahead[:, members].sum(axis=1)
    return upto[None, :] - upto[:, None]


def _copies(ahead: Number, holders: Sequence[int]) -> Number:
    """How often the holders of a tied parameter would count it too often in each stage."""
    return np.maximum(count_inside(ahead, holders) - 1, 0)


def _waits(graph: LayerGraph, ahead: Number) -> dict[int, Number]:
    """`waiting_gradients` of every stage, by layer."""
    place, waits = positions(graph), dict[int, Number]()
    for tied in graph.tied:
        holders = sorted({place[name] for name in tied.layers})
        for number, at in enumerate(holders[1:], 1):
            before = count_inside(ahead, holders[:number]) > 0
            waits[at] = waits.get(at, 0) + tied.grad_bytes * before
    return waits


def _transients(
    ahead: Number,
    layers: Sequence[Transient],
    pending: Sequence[Sequence[Waiting]],
    waits: Mapping[int, Number] | None = None,
) -> Number:
    """`largest_transient` of every stage."""
    beside = any(layer.backward_bytes is not None for layer in layers)
    if not waits and not beside and not any(layer.less_bytes for layer in layers):
        return _largest(ahead, [layer.most_bytes for layer in layers])
    most = np.zeros((len(ahead), len(ahead)), dtype=np.int64)
    prefixes = (ahead.sum(axis=1) == np.arange(len(ahead))).all()  # One layer more a cut.
    for at, layer in enumerate(layers):
        # Of prefixes those up to `at` are where a stage with the layer starts, the others where it ends.
        here = (slice(at + 1), slice(at + 1, None)) if prefixes else (slice(None), slice(None))
        waiting = waits[at][here] if waits and at in waits else 0
        before = most[here] - layer.less_bytes + waiting
        own: Number = layer.most_bytes
        if layer.backward_bytes is not None:
            gradients = _pending(ahead[here[0]], ahead[here[1]], pending[at])
            own = np.maximum(own, layer.backward_bytes + gradients)
        inside = prefixes or ahead[None, :, at] & ~ahead[:, None, at]
        most[here] = np.where(inside, np.maximum(before, own), most[here])
    return most


def _pending(starts: Number, ends: Number, values: Sequence[Waiting]) -> Number:
    """`pending_gradients` of one layer in the stages with it, shape (starts, ends)."""
    found = np.zeros((len(starts), len(ends)), dtype=np.int64)

    def holds_any(layers: Sequence[int]) -> Number:
        holds = (ends[None, :, at] & ~starts[:, None, at] for at in layers)
        return functools.reduce(np.logical_or, holds) if layers else np.ones(found.shape, bool)

    for value in values:
        read = holds_any(value.readers)
        if value.others:
            read &= holds_any(value.others)
        if value.producer is not None:
            read &= starts[:, None, value.producer] | ~ends[None, :, value.producer]
        found += value.bytes * read
    return found


def _relayed(graph: LayerGraph, ahead: Number) -> Number:
    """Bytes of the gradients that every stage hands on as they are."""
    place, found = positions(graph), np.zeros((len(ahead), len(ahead)), dtype=np.int64)
    for value in graph.values if counts_gradients(graph) else ():
        readers = sorted({place[name] for name in value.consumers})
        if value.has_gradient and readers:
            read = ahead[:, readers].sum(axis=1)
            across = ahead[:, place[value.producer]] & (read < len(readers))
            through = across[:, None] & across[None, :] & (read[:, None] == read[None, :])
            found += value.bytes * through
    return found


def _largest(ahead: Number, per_layer: Sequence[int]) -> Number:
    sizes = np.asarray(per_layer, dtype=np.int64)
    largest = np.zeros((len(ahead), len(ahead)), dtype=np.int64)
    for size in np.unique(sizes):
        upto = ahead[:, sizes >= size].sum(axis=1)
        largest[upto[None, :] > upto[:, None]] = size
    return largest
