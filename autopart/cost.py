"""Seconds and bytes: the only room in which they are computed.

Symbols   i, j   a stage of consecutive layers i … j - 1, in the graph's order
          v      a value, made by layer p(v), read last by layer q(v)
          m      microbatches that one rank runs in a step

The formulas work on one stage (plain numbers) and on all n² intervals of a chain at once (numpy
matrices indexed [i, j]), so that a solver and the evaluation of its plan cannot disagree.

Stash of a stage, per microbatch in flight: what its layers keep inside themselves, plus every value
that it receives (kept until backward, and passed on from there), plus every value that it makes and
that is sent on or that some layer's backward needs. Each is counted once.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autopart.cluster import Cluster, Link, link_between, slowest_link
from autopart.graph import LayerGraph, Value, positions
from autopart.plan import MemoryUse, StagePrediction, Sync
from autopart.problem import Layout, Problem

Number = Any
"""A float or int, or a numpy matrix of them over intervals [i, j]."""

Partition = tuple[tuple[int, ...], ...]
"""For each stage, the positions of its layers in the graph's order."""


class Traffic(NamedTuple):
    """What crosses one cut for one microbatch."""

    bytes: Number
    tensors: Number
    grad_bytes: Number
    grad_tensors: Number


class StageLoad(NamedTuple):
    """What a stage is, before it has ranks, links or a schedule."""

    forward_time: Number
    backward_time: Number
    update_time: Number
    weight_bytes: Number
    """Parameters, a tied one once, and the model's buffers."""
    grad_bytes: Number
    num_trainable: Number
    stash_bytes: Number
    inner_stash_bytes: Number
    """The part of the stash that every larger stage keeps too: no more than the stage's own."""
    workspace_bytes: Number
    input_bytes: Number
    """The part of the batch that the stage reads, for one microbatch."""
    received: Traffic
    sent: Traffic


class Memory(NamedTuple):
    """The bytes of one rank at its peak, by what they are."""

    weights: Number
    gradients: Number
    optimizer: Number
    stash: Number
    workspace: Number
    buffers: Number
    reserve: Number


def send_time(link: Link, num_bytes: Number, num_tensors: Number) -> Number:
    """Seconds for `num_tensors` messages of `num_bytes` in all: latency each, then bandwidth."""
    return num_tensors * link.latency + num_bytes / link.bandwidth


def all_reduce_time(link: Link, num_bytes: Number, num_ranks: int) -> Number:
    """Seconds of a ring all-reduce: 2 (r - 1) steps of 1/r of the bytes (Patarasuk and Yuan,
    J. Parallel Distrib. Comput. 2009)."""
    steps = 2 * (num_ranks - 1)
    return steps * (link.latency + num_bytes / num_ranks / link.bandwidth)


def in_flight(schedule: str, num_stages: int, stage: int, microbatches: int) -> int:
    """Most microbatches past F and before B on stage `stage` (from 0): GPipe holds all that it
    runs, 1F1B as many as there are stages from it to the end."""
    return microbatches if schedule == "gpipe" else min(num_stages - stage, microbatches)


def memory(
    load: StageLoad, problem: Problem, microbatches: int, microbatches_in_flight: int
) -> Memory:
    """Bytes of a rank at its peak. Buffers: the next receive, two sends and two receives of
    gradients under way, and the part of the batch that the stage reads."""
    gradients_moving = 2 * (load.received.grad_bytes + load.sent.grad_bytes)
    return Memory(
        weights=load.weight_bytes,
        gradients=load.grad_bytes,
        optimizer=load.num_trainable * problem.optimizer_bytes,
        stash=microbatches_in_flight * load.stash_bytes,
        workspace=load.workspace_bytes,
        buffers=load.received.bytes + gradients_moving + microbatches * load.input_bytes,
        reserve=problem.cluster.reserve_bytes,
    )


def compute_time(load: StageLoad, cluster: Cluster) -> Number:
    """Seconds that a rank computes for one microbatch: one F and one B, each with its fixed cost."""
    return load.forward_time + load.backward_time + 2 * cluster.action_overhead


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


def cut_links(cluster: Cluster, stage_ranks: Sequence[Sequence[int]]) -> list[Link]:
    """For each cut the slowest link that a replica's sends over it use."""
    links: list[Link] = []
    for here, there in itertools.pairwise(stage_ranks):
        pairs = zip(here, there, strict=True)
        used = [link_between(cluster, a, b) for a, b in pairs]
        links.append(min(used, key=lambda link: (link.bandwidth, -link.latency)))
    return links


def links_around(links: Sequence[Link], stage: int) -> tuple[Link | None, Link | None]:
    """The links before and after a stage; None at the ends."""
    before = links[stage - 1] if stage > 0 else None
    return before, links[stage] if stage < len(links) else None


def predict(
    problem: Problem, layout: Layout, partition: Partition
) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...]]:
    """What each stage of a partition needs on its ranks, and the gradient syncs of a step."""
    loads = stage_loads(problem.graph, partition)
    links = cut_links(problem.cluster, layout.stage_ranks)
    stages = tuple(
        _predict_stage(problem, layout, stage, load, *links_around(links, stage))
        for stage, load in enumerate(loads)
    )
    return stages, _syncs(problem, layout, partition, loads)


def _predict_stage(
    problem: Problem,
    layout: Layout,
    stage: int,
    load: StageLoad,
    before: Link | None,
    after: Link | None,
) -> StagePrediction:
    held = in_flight(layout.schedule, len(layout.stage_ranks), stage, layout.microbatches)
    use = MemoryUse(**memory(load, problem, layout.microbatches, held)._asdict())
    return StagePrediction(
        forward_time=load.forward_time,
        backward_time=load.backward_time,
        busy_time=busy_time(load, problem.cluster, before, after),
        send_time=traffic_times(load.sent, after)[0],
        send_back_time=traffic_times(load.received, before)[1],
        update_time=load.update_time,
        in_flight=held,
        stash_bytes=load.stash_bytes,
        memory=use,
        peak_bytes=total(use),
    )


def total(use: MemoryUse | Memory) -> Number:
    """All bytes of a rank together."""
    return (
        use.weights
        + use.gradients
        + use.optimizer
        + use.stash
        + use.workspace
        + use.buffers
        + use.reserve
    )


def _syncs(
    problem: Problem, layout: Layout, partition: Partition, loads: Sequence[StageLoad]
) -> tuple[Sync, ...]:
    syncs = [
        Sync(what=f"stage {stage}", ranks=ranks, time=_sync_time(problem, ranks, load.grad_bytes))
        for stage, (ranks, load) in enumerate(zip(layout.stage_ranks, loads, strict=True))
        if len(ranks) > 1
    ]
    place = positions(problem.graph)
    for tied in problem.graph.tied:
        members = {place[name] for name in tied.layers}
        holders = [s for s, layers in enumerate(partition) if members.intersection(layers)]
        if len(holders) > 1:
            ranks = tuple(sorted(rank for s in holders for rank in layout.stage_ranks[s]))
            time = _sync_time(problem, ranks, tied.grad_bytes)
            syncs.append(Sync(what=tied.name, ranks=ranks, time=time))
    return tuple(syncs)


def _sync_time(problem: Problem, ranks: tuple[int, ...], num_bytes: int) -> float:
    return all_reduce_time(slowest_link(problem.cluster, ranks), num_bytes, len(ranks))


def stage_loads(graph: LayerGraph, partition: Partition) -> tuple[StageLoad, ...]:
    """The load of each stage of any partition whose edges all go forward."""
    stage_of = {layer: stage for stage, layers in enumerate(partition) for layer in layers}
    place = positions(graph)
    spans = [
        (v, stage_of[place[v.producer]], max(stage_of[place[c]] for c in v.consumers))
        for v in graph.values
    ]
    return tuple(_stage_load(graph, place, spans, s, layers) for s, layers in enumerate(partition))


def _stage_load(
    graph: LayerGraph,
    place: dict[str, int],
    spans: Sequence[tuple[Value, int, int]],
    stage: int,
    members: Sequence[int],
) -> StageLoad:
    layers = [graph.layers[m] for m in sorted(members)]
    inside = set(members)
    spare = [
        (t, sum(place[name] in inside for name in t.layers) - 1)
        for t in graph.tied
        if sum(place[name] in inside for name in t.layers) > 1
    ]
    received = [v for v, made, last in spans if made < stage <= last]
    kept = [v for v, made, last in spans if made == stage and (v.kept_by or last > stage)]
    inner = sum(la.stash_bytes for la in layers) + sum(v.bytes for v in kept if v.kept_by)
    read = [i for i in graph.inputs if any(place[c] in inside for c in i.consumers)]
    return StageLoad(
        forward_time=sum(la.forward_time for la in layers),
        backward_time=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        update_time=sum(la.update_time for la in layers),
        weight_bytes=sum(la.param_bytes + la.buffer_bytes for la in layers)
        - sum(t.param_bytes * extra for t, extra in spare),
        grad_bytes=sum(la.grad_bytes for la in layers)
        - sum(t.grad_bytes * extra for t, extra in spare),
        num_trainable=sum(la.num_trainable for la in layers)
        - sum(t.num_trainable * extra for t, extra in spare),
        stash_bytes=inner
        + sum(v.bytes for v in received)
        + sum(v.bytes for v in kept if not v.kept_by),
        inner_stash_bytes=inner,
        workspace_bytes=max(la.workspace_bytes for la in layers),
        input_bytes=sum(i.bytes for i in read),
        received=_traffic(received),
        sent=_traffic([v for v, made, last in spans if made <= stage < last]),
    )


def _traffic(values: Sequence[Value]) -> Traffic:
    back = [v for v in values if v.has_gradient]
    return Traffic(
        bytes=sum(v.bytes for v in values),
        tensors=len(values),
        grad_bytes=sum(v.bytes for v in back),
        grad_tensors=len(back),
    )


def interval_loads(graph: LayerGraph) -> StageLoad:
    """The loads of all stages of consecutive layers: matrices of shape (n + 1, n + 1) whose
    entry [i, j], i < j, is the stage of layers i … j - 1; other entries mean nothing. O(n²)."""
    place = positions(graph)
    spans = [
        (v, place[v.producer], max(place[c] for c in v.consumers))
        for v in graph.values
        if v.consumers
    ]
    crossing = _crossing(len(graph.layers), spans)
    layers = graph.layers
    made_here = [0] * len(layers)
    for v, made, _ in spans:
        made_here[made] += v.bytes if v.kept_by else 0
    inner = _sums([la.stash_bytes + kept for la, kept in zip(layers, made_here, strict=True)])
    return StageLoad(
        forward_time=_sums([la.forward_time for la in layers]),
        backward_time=_sums([la.input_grad_time + la.weight_grad_time for la in layers]),
        update_time=_sums([la.update_time for la in layers]),
        weight_bytes=_sums([la.param_bytes + la.buffer_bytes for la in layers])
        - _twice(graph, place, [t.param_bytes for t in graph.tied]),
        grad_bytes=_sums([la.grad_bytes for la in layers])
        - _twice(graph, place, [t.grad_bytes for t in graph.tied]),
        num_trainable=_sums([la.num_trainable for la in layers])
        - _twice(graph, place, [t.num_trainable for t in graph.tied]),
        stash_bytes=inner + crossing.bytes[:, None] + _sent_only(len(layers), spans),
        inner_stash_bytes=inner,
        workspace_bytes=_maxima([la.workspace_bytes for la in layers]),
        input_bytes=_inputs(graph, place),
        received=Traffic(*(t[:, None] for t in crossing)),
        sent=Traffic(*(t[None, :] for t in crossing)),
    )


def _crossing(num_layers: int, spans: Sequence[tuple[Value, int, int]]) -> Traffic:
    """What crosses each cut c (between layers c - 1 and c): the values with p < c <= q."""
    steps = np.zeros((4, num_layers + 2), dtype=np.int64)
    for v, made, last in spans:
        what = np.array([v.bytes, 1, v.bytes * v.has_gradient, v.has_gradient], dtype=np.int64)
        steps[:, made + 1] += what
        steps[:, last + 1] -= what
    return Traffic(*steps.cumsum(axis=1)[:, : num_layers + 1])


def _sums(per_layer: Sequence[float]) -> Number:
    prefix = np.concatenate(([0], np.cumsum(np.asarray(per_layer))))
    return prefix[None, :] - prefix[:, None]


def _maxima(per_layer: Sequence[int]) -> Number:
    n = len(per_layer)
    wide = np.zeros((n + 1, n + 1), dtype=np.int64)
    wide[:n, 1:] = np.triu(np.broadcast_to(np.asarray(per_layer, dtype=np.int64), (n, n)))
    return np.maximum.accumulate(wide, axis=1)


def _rectangles(num_layers: int, corners: Sequence[tuple[int, int, int, int]]) -> Number:
    """Sum of rectangles (last i, first j, last j, bytes): `bytes` wherever i <= last i and
    first j <= j <= last j."""
    steps = np.zeros((num_layers + 2, num_layers + 2), dtype=np.int64)
    for last_i, first_j, last_j, num in corners:
        steps[0, first_j] += num
        steps[0, last_j + 1] -= num
        steps[last_i + 1, first_j] -= num
        steps[last_i + 1, last_j + 1] += num
    return steps.cumsum(axis=0).cumsum(axis=1)[: num_layers + 1, : num_layers + 1]


def _sent_only(num_layers: int, spans: Sequence[tuple[Value, int, int]]) -> Number:
    """Values that only their sending keeps: made inside [i, j), read at j or behind."""
    corners = [(made, made + 1, last, v.bytes) for v, made, last in spans if not v.kept_by]
    return _rectangles(num_layers, corners)


def _pairs(spots: set[int], num: int, num_layers: int) -> list[tuple[int, int, int, int]]:
    ordered = sorted(spots)
    return [(a, b + 1, num_layers, num) for a, b in itertools.pairwise(ordered)]


def _twice(graph: LayerGraph, place: dict[str, int], sizes: Sequence[int]) -> Number:
    """What tied parameters would be counted too often when several holders share a stage."""
    n = len(graph.layers)
    corners = [
        corner
        for tied, size in zip(graph.tied, sizes, strict=True)
        for corner in _pairs({place[name] for name in tied.layers}, size, n)
    ]
    return _rectangles(n, corners)


def _inputs(graph: LayerGraph, place: dict[str, int]) -> Number:
    n = len(graph.layers)
    per_layer = [0] * n
    corners: list[tuple[int, int, int, int]] = []
    for leaf in graph.inputs:
        spots = {place[name] for name in leaf.consumers}
        corners += _pairs(spots, leaf.bytes, n)
        for spot in spots:
            per_layer[spot] += leaf.bytes
    return _sums(per_layer) - _rectangles(n, corners)
