"""What a stage is made of: sums over its layers and over the values at its two cuts.

Stash of a stage, for each microbatch in flight: what its layers keep inside themselves, plus every
value that it receives (kept until backward, and passed on from there), plus every value that it makes
and that is sent on or that some layer's backward needs. Each is counted once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from autopart.graph import LayerGraph, Value, positions

Number = Any
"""A float or int, a numpy matrix of them, or an affine expression in them."""

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
    weight_grad_time: Number
    """The part of the backward that W runs where it is split into I and W."""
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
    host_bytes: Number = 0
    """Of the stash, what waits on the host for one microbatch."""
    widest_trainable: Number = 0
    """Trained elements of the layer with the most of them."""
    optimizer_on_host: Number = 0
    """1 where optimizer state and master copies lie on the host, else 0."""


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
        weight_grad_time=sum(la.weight_grad_time for la in layers),
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
        widest_trainable=max(la.num_trainable for la in layers),
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
