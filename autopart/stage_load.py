"""What a stage is made of: sums over its layers and over the values at its two cuts.

Stash of a stage, for each microbatch in flight: what its layers keep inside themselves, plus every
value that it receives (kept until backward, and passed on from there), plus every value that it makes
and that is sent on or that some layer's backward needs. Each is counted once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from autopart.graph import Layer, LayerGraph, Value, positions

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
    split_time: Number
    """What forward and backward take more where the backward is split; I takes it on."""
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
    waiting_bytes: Number = 0
    """What one microbatch keeps from I to W, where the backward is split."""
    input_grad_workspace_bytes: Number = 0
    """The transient of I."""
    weight_grad_workspace_bytes: Number = 0
    """The transient of W."""


class Transient(NamedTuple):
    """Of one layer, or of one in each of several stages side by side."""

    most_bytes: int
    """The most that is held above what is there before, while the layer runs."""
    less_bytes: int
    """What is not there, of all that the action is reckoned to hold, while layers before this one run: its
    stash is not there yet in F and no longer in B."""


def whole_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in F and in B.

    A stage's F and B are reckoned to hold its whole stash. While layer l runs, those behind it have not
    made theirs yet (F), or have freed it (B): that holds for what they keep inside. Values may be needed by
    layers before, and stay.
    """
    return [Transient(la.workspace_bytes, la.stash_bytes) for la in graph.layers]


def input_grad_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in I: the layers behind have left what W needs in place of their stash."""
    return [
        Transient(la.workspace_bytes, 0)
        if la.halves is None
        else Transient(
            la.halves.input_grad_workspace_bytes, la.stash_bytes - la.halves.waiting_bytes
        )
        for la in graph.layers
    ]


def weight_grad_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in W, which runs the last layer first: those behind have freed what waited."""
    return [
        Transient(la.workspace_bytes, 0)
        if la.halves is None
        else Transient(la.halves.weight_grad_workspace_bytes, la.halves.waiting_bytes)
        for la in graph.layers
    ]


def largest_transient(layers: Sequence[Transient], waits: Sequence[int] | None = None) -> int:
    """Of a stage with layers in the order of execution, above all that its action is reckoned to hold;
    `waits` are the gradients that each leaves waiting."""
    most = 0
    for layer, waiting in zip(layers, waits or [0] * len(layers), strict=True):
        most = max(most - layer.less_bytes + waiting, layer.most_bytes)
    return most


def waiting_gradients(graph: LayerGraph, members: Sequence[int]) -> list[int]:
    """For each of a stage's layers, in the order of execution, the bytes of gradients that B of it leaves waiting:
    of a tied parameter that a layer before it reads too, until that one's is added."""
    own = [graph.layers[at].name for at in members]
    waits = [0] * len(own)
    for tied in graph.tied:
        for at in [at for at, name in enumerate(own) if name in tied.layers][1:]:
            waits[at] += tied.grad_bytes
    return waits


def has_halves(graph: LayerGraph) -> bool:
    """Whether it is known of each layer what W needs; else all that a stage keeps is taken to stay."""
    return all(la.halves is not None for la in graph.layers)


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
    stash = inner + sum(v.bytes for v in received) + sum(v.bytes for v in kept if not v.kept_by)
    own = sorted(members)
    whole, of_input, of_weight = (
        [of[m] for m in own]
        for of in (
            whole_transients(graph),
            input_grad_transients(graph),
            weight_grad_transients(graph),
        )
    )
    read = [i for i in graph.inputs if any(place[c] in inside for c in i.consumers)]
    return StageLoad(
        forward_time=sum(la.forward_time for la in layers),
        backward_time=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        weight_grad_time=sum(la.weight_grad_time for la in layers),
        split_time=sum(la.split_time for la in layers),
        update_time=sum(la.update_time for la in layers),
        weight_bytes=sum(la.param_bytes + la.buffer_bytes for la in layers)
        - sum(t.param_bytes * extra for t, extra in spare),
        grad_bytes=sum(la.grad_bytes for la in layers)
        - sum(t.grad_bytes * extra for t, extra in spare),
        num_trainable=sum(la.num_trainable for la in layers)
        - sum(t.num_trainable * extra for t, extra in spare),
        stash_bytes=stash,
        inner_stash_bytes=inner,
        workspace_bytes=largest_transient(whole, waiting_gradients(graph, own)),
        widest_trainable=max(la.num_trainable for la in layers),
        input_bytes=sum(i.bytes for i in read),
        received=_traffic(received),
        sent=_traffic([v for v, made, last in spans if made <= stage < last]),
        waiting_bytes=_waiting(layers, stash) if has_halves(graph) else stash,
        input_grad_workspace_bytes=largest_transient(of_input),
        weight_grad_workspace_bytes=largest_transient(of_weight),
    )


def _waiting(layers: Sequence[Layer], stash: int) -> int:
    """What one microbatch keeps from I to W. A value may wait for several layers, but counts no more often
    than all values of the stash together."""
    halves = [la.halves for la in layers if la.halves is not None]
    values = stash - sum(la.stash_bytes for la in layers)
    inside = sum(of.waiting_bytes for of in halves)
    return inside + min(values, sum(of.waiting_value_bytes for of in halves))


def _traffic(values: Sequence[Value]) -> Traffic:
    back = [v for v in values if v.has_gradient]
    return Traffic(
        bytes=sum(v.bytes for v in values),
        tensors=len(values),
        grad_bytes=sum(v.bytes for v in back),
        grad_tensors=len(back),
    )
