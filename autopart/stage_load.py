"""What a stage is made of: sums over its layers and over the values at its two cuts.

Stash of a stage, for each microbatch in flight: what its layers keep inside themselves, plus every
value that it receives (kept until backward, and passed on from there), plus every value that it makes
and that is sent on or that some layer's backward needs. Each is counted once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from autopart.graph import Halves, Layer, LayerGraph, Value, edges, positions

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
    relayed_grad_bytes: Number = 0
    """Of the gradients that it receives, those that it hands on as they are: autograd makes a copy."""


class Transient(NamedTuple):
    """Of one layer, or of one in each of several stages side by side."""

    most_bytes: int
    """The most that is held above what is there before, while the layer runs."""
    less_bytes: int
    """What is not there, of all that the action is reckoned to hold, while layers before this one run: its
    stash is not there yet in F and no longer in B."""
    backward_bytes: int | None = None
    """As `most_bytes`, of a backward alone and beside `pending_gradients`; None where `most_bytes` covers it."""

    def beside(self, gradients: int) -> "Transient":
        """Where so many bytes of gradients are there during its backward."""
        if self.backward_bytes is None:
            return self
        return Transient(max(self.most_bytes, self.backward_bytes + gradients), self.less_bytes)

    def again(self, gradients: int) -> "Transient":
        """The same of a layer whose forward runs again in its backward."""
        if self.backward_bytes is None:
            return self
        most = max(self.most_bytes, self.backward_bytes)
        return Transient(most + gradients, self.less_bytes)


def whole_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in F and in B.

    A stage's F and B are reckoned to hold its whole stash. While layer l runs, those behind it have not
    made theirs yet (F), or have freed it (B): that holds for what they keep inside. Values may be needed by
    layers before, and stay.
    """
    return [
        Transient(la.workspace_bytes, la.stash_bytes, la.backward_workspace_bytes)
        for la in graph.layers
    ]


def input_grad_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in I: the layers behind have left what W needs in place of their stash."""
    return [
        Transient(la.workspace_bytes, 0, la.backward_workspace_bytes)
        if la.halves is None
        else _input_grad_transient(la, la.halves)
        for la in graph.layers
    ]


def _input_grad_transient(layer: Layer, halves: Halves) -> Transient:
    most, less = halves.input_grad_workspace_bytes, layer.stash_bytes - halves.waiting_bytes
    if layer.backward_workspace_bytes is None:
        return Transient(most, less)
    return Transient(0, less, most)


def weight_grad_transients(graph: LayerGraph) -> list[Transient]:
    """Of each layer, in W, which runs the last layer first: those behind have freed what waited."""
    return [
        Transient(la.workspace_bytes, 0, la.backward_workspace_bytes)
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


def pending_gradients(graph: LayerGraph, members: Sequence[int]) -> list[int]:
    """For each of a stage's layers, in the order of execution, the bytes of gradients of values that are there when
    its backward starts, and did not come from the next stage: of each value that a layer of the stage behind it has
    read, until the backward of its maker is done, or that of the whole stage where it comes from another one. What a
    gradient keeps beside itself is there until the stage's first layer that makes or reads the value has run.

    A layer that keeps its own result, as a ReLU does, frees it together with the gradient that it takes, and that
    is how it was measured; where the result is sent on, the stage holds it, and only the gradient goes."""
    place, own = positions(graph), sorted(members)
    at = {member: number for number, member in enumerate(own)}
    pending = [0] * len(own)
    for value in graph.values:
        made = at.get(place[value.producer])
        readers = [at[place[name]] for name in value.consumers if place[name] in at]
        if made is not None and _own_result(value) and not (value.has_gradient and readers):
            pending[made] += value.bytes
        if value.has_gradient and readers:
            for number in range(made or 0, max(readers)):
                pending[number] += value.bytes
            first = min(readers) if made is None else made
            givers = [at[place[name]] for name in value.grad_extra_by if place[name] in at]
            for number in range(first, max(givers, default=0)):
                pending[number] += value.grad_extra_bytes
    return pending


def _own_result(value: Value) -> bool:
    return value.producer in value.kept_by


def own_results(graph: LayerGraph) -> list[list[Value]]:
    """Of each layer the values that it makes and keeps itself."""
    place = positions(graph)
    found: list[list[Value]] = [[] for _ in graph.layers]
    for value in filter(_own_result, graph.values):
        found[place[value.producer]].append(value)
    return found


class Waiting(NamedTuple):
    """Values whose gradient may be there while the backward of one layer starts."""

    readers: tuple[int, ...]
    """The positions of their readers behind the layer, of which the stage must hold one; none where all is the same."""
    producer: int | None
    """The position of their maker where it may have run its own backward before: it must not lie on the stage."""
    others: tuple[int, ...]
    """Layers of which the stage must hold one too; none where that does not matter."""
    bytes: int


def may_wait(graph: LayerGraph) -> list[list[Waiting]]:
    """Of each layer, what `pending_gradients` counts on the stages that hold it."""
    place, behind = positions(graph), _descendants(graph)
    found: list[dict[tuple[tuple[int, ...], int | None, tuple[int, ...]], int]]
    found = [{} for _ in graph.layers]
    known = any(la.backward_workspace_bytes is not None for la in graph.layers)
    for value in graph.values if known else ():
        made, readers = place[value.producer], sorted({place[name] for name in value.consumers})
        own = made if _own_result(value) else None
        if own is not None:
            found[own][(), None, ()] = found[own].get(((), None, ()), 0) + value.bytes
        for at in range(readers[-1] if value.has_gradient and readers else 0):
            # A stage with the layer and a reader holds all that lies between them.
            if at != own and (at >= made or not behind[at] >> made & 1):
                later = tuple(r for r in readers if r > at)
                key = later, made if at < made else None, ()
                found[at][key] = found[at].get(key, 0) + value.bytes
            later = tuple(place[name] for name in value.grad_extra_by if place[name] > at)
            if later and at >= made:
                key = later, None, tuple(r for r in (made, *readers) if r <= at)
                found[at][key] = found[at].get(key, 0) + value.grad_extra_bytes
    return [[Waiting(*key, size) for key, size in own.items()] for own in found]


def _descendants(graph: LayerGraph) -> list[int]:
    """Of each layer those that need it, at once or through others, as the bits of a number."""
    behind = [0] * len(graph.layers)
    for u, w in reversed(edges(graph)):
        behind[u] |= 1 << w | behind[w]
    return behind


def counts_gradients(graph: LayerGraph) -> bool:
    """Whether it is known of each layer what its backward needs beside gradients of values."""
    return all(la.backward_workspace_bytes is not None for la in graph.layers)


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
    pending = pending_gradients(graph, own)
    whole, of_input, of_weight = (
        [of[m].beside(gradients) for m, gradients in zip(own, pending, strict=True)]
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
        relayed_grad_bytes=sum(
            v.bytes
            for v, made, last in spans
            if made < stage < last
            and v.has_gradient
            and inside.isdisjoint(place[name] for name in v.consumers)
        )
        * counts_gradients(graph),
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
