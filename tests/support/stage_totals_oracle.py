"""Stage totals by plain sums over sets of layers: the oracle for the totals over cuts."""

from collections.abc import Sequence

from autopart.cost.stage_totals import StageTotals, Traffic
from autopart.cost.transients import (
    Transient,
    counts_gradients,
    has_split_backward,
    input_grad_transients,
    weight_grad_transients,
    whole_transients,
)
from autopart.records.layer_graph import Layer, LayerGraph, Value, positions
from autopart.records.layouts import Partition


def stage_totals(graph: LayerGraph, partition: Partition) -> tuple[StageTotals, ...]:
    """The totals of each stage, for any partition whose edges all go forward."""
    stage_of = {layer: stage for stage, layers in enumerate(partition) for layer in layers}
    place = positions(graph)
    spans = [
        (v, stage_of[place[v.producer]], max(stage_of[place[c]] for c in v.consumers))
        for v in graph.values
    ]
    return tuple(
        _stage_totals(graph, place, spans, s, layers) for s, layers in enumerate(partition)
    )


def _stage_totals(
    graph: LayerGraph,
    place: dict[str, int],
    spans: Sequence[tuple[Value, int, int]],
    stage: int,
    members: Sequence[int],
) -> StageTotals[float]:
    layers = [graph.layers[m] for m in sorted(members)]
    inside = set(members)
    spare = [
        (t, sum(place[name] in inside for name in t.layers) - 1)
        for t in graph.tied
        if sum(place[name] in inside for name in t.layers) > 1
    ]
    received = [v for v, made, last in spans if made < stage <= last]
    made_here = [(v, last) for v, made, last in spans if made == stage]
    needed = {v.name for v, _ in made_here if not inside.isdisjoint(place[k] for k in v.kept_by)}
    inner = sum(la.stash_bytes for la in layers)
    inner += sum(v.bytes for v, _ in made_here if v.name in needed)
    stash = inner + sum(v.bytes for v in received)
    own = sorted(members)
    pending = pending_gradients(graph, own)
    summed = [a + b for a, b in zip(pending, sums_of_tied_gradients(graph, own), strict=True)]
    whole, of_input, of_weight = (
        [of[m].with_gradients(gradients) for m, gradients in zip(own, beside, strict=True)]
        for of, beside in (
            (whole_transients(graph), summed),
            (input_grad_transients(graph), pending),
            (weight_grad_transients(graph), pending),
        )
    )
    read = [i for i in graph.inputs if any(place[c] in inside for c in i.consumers)]
    return StageTotals(
        forward_time=sum(la.forward_time for la in layers),
        backward_time=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        weight_grad_time=sum(la.weight_grad_time for la in layers),
        split_time=sum(la.split_time for la in layers),
        pair_saving=sum(
            la.forward_time + la.input_grad_time + la.weight_grad_time - la.pair_time
            for la in layers
            if la.pair_time
        ),
        update_time=sum(la.update_time for la in layers),
        unshared_update_time=sum(la.unshared_update_time or 0.0 for la in layers),
        weight_bytes=sum(la.param_bytes + la.buffer_bytes for la in layers)
        - sum(t.param_bytes * extra for t, extra in spare),
        grad_bytes=sum(la.grad_bytes for la in layers)
        - sum(t.grad_bytes * extra for t, extra in spare),
        num_trainable=sum(la.num_trainable for la in layers)
        - sum(t.num_trainable * extra for t, extra in spare),
        unscattered_grad_bytes=sum(la.unscattered_grad_bytes or 0 for la in layers)
        - sum((t.unscattered_grad_bytes or 0) * extra for t, extra in spare),
        stash_bytes=stash,
        inner_stash_bytes=inner,
        workspace_bytes=largest_transient(whole, tied_gradients(graph, own)),
        first_backward_bytes=_first_backward(graph, own, whole),
        widest_trainable=max(la.num_trainable for la in layers),
        input_bytes=sum(i.bytes for i in read),
        host_bytes=0,
        optimizer_on_host=0,
        received=_traffic(received),
        sent=_traffic([v for v, made, last in spans if made <= stage < last]),
        waiting_bytes=_waiting(layers, stash) if has_split_backward(graph) else stash,
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
        output_bytes=sum(v.bytes for v, last in made_here if last > stage and v.name not in needed),
    )


def _first_backward(graph: LayerGraph, own: Sequence[int], whole: Sequence[Transient]) -> int:
    """The most above the stash in the first backward: layer by layer from the last one, with gradients that stay."""
    place = positions(graph)
    above, most = 0, 0
    waits = tied_gradients(graph, own)
    for at in reversed(range(len(own))):
        # A tied parameter's gradient is made with the first of its layers here.
        layer = graph.layers[own[at]]
        alone = layer.grad_bytes + (layer.unscattered_grad_bytes or 0)
        for tied in graph.tied:
            holders = {place[name] for name in tied.layers}.intersection(own)
            if own[at] in holders:
                whole_tied = tied.grad_bytes + (tied.unscattered_grad_bytes or 0)
                alone -= whole_tied * (own[at] != min(holders))
        most = (
            max(most, above + whole[at].most_bytes + alone)
            if at < len(own) - 1
            else (whole[at].most_bytes + alone)
        )
        above += alone + waits[at] - whole[at].less_bytes
    return max(most, above)


def _waiting(layers: Sequence[Layer], stash: int) -> int:
    """Bytes that one microbatch keeps from I to W.

    A value may wait for several layers. All values together count at most their bytes in the stash.
    """
    splits = [la.split_backward for la in layers if la.split_backward is not None]
    values = stash - sum(la.stash_bytes for la in layers)
    inside = sum(of.waiting_bytes for of in splits)
    return inside + min(values, sum(of.waiting_value_bytes for of in splits))


def _traffic(values: Sequence[Value]) -> Traffic[float]:
    back = [v for v in values if v.has_gradient]
    return Traffic(
        bytes=sum(v.bytes for v in values),
        tensors=len(values),
        grad_bytes=sum(v.bytes for v in back),
        grad_tensors=len(back),
    )


def largest_transient(layers: Sequence[Transient], waits: Sequence[int] | None = None) -> int:
    """The stage's largest transient, beyond its counted bytes; layers are in execution order.

    `waits` has the bytes of waiting gradients that each layer leaves.
    """
    most = 0
    for layer, waiting in zip(layers, waits or [0] * len(layers), strict=True):
        most = max(most - layer.less_bytes + waiting, layer.most_bytes)
    return most


def tied_gradients(graph: LayerGraph, members: Sequence[int]) -> list[int]:
    """For each layer on a stage, in execution order, the waiting gradient bytes that its B leaves.

    The gradient of a tied parameter waits if an earlier layer on the stage also reads the parameter.
    It waits until that layer's gradient is added.
    """
    own = [graph.layers[at].name for at in members]
    waits = [0] * len(own)
    for tied in graph.tied:
        for at in [at for at, name in enumerate(own) if name in tied.layers][1:]:
            waits[at] += tied.grad_bytes
    return waits


def sums_of_tied_gradients(graph: LayerGraph, members: Sequence[int]) -> list[int]:
    """For each layer on a stage, in execution order, the sums that its whole backward makes.

    A sum is made where a later layer on the stage has left a gradient for the same parameter.
    """
    own = [graph.layers[at].name for at in members]
    sums = [0] * len(own)
    for tied in graph.tied:
        for at in [at for at, name in enumerate(own) if name in tied.layers][:-1]:
            sums[at] += tied.grad_bytes
    return sums


def pending_gradients(graph: LayerGraph, members: Sequence[int]) -> list[int]:
    """For each layer on a stage, in execution order, value gradients that exist when its backward starts.

    Gradients from the next stage do not count. The gradient of a value exists once a later layer
    on the stage has read the value. It exists until the backward of the value's producer ends. If
    the producer is on another stage, it exists until the stage's backward ends. Extra bytes of a
    gradient exist until the first layer on the stage that makes or reads the value has run.

    A layer that keeps its own result, such as a ReLU, frees it together with its output gradient.
    Profiles measure both together. If the result is sent on, the stage keeps it and frees only the
    gradient.
    """
    place, own = positions(graph), sorted(members)
    at = {member: number for number, member in enumerate(own)}
    pending = [0] * len(own)
    for value in graph.values:
        made = at.get(place[value.producer])
        readers = [at[place[name]] for name in value.consumers if place[name] in at]
        if (
            made is not None
            and value.producer in value.kept_by
            and not (value.has_gradient and readers)
        ):
            pending[made] += value.bytes
        if value.has_gradient and readers:
            for number in range(made or 0, max(readers)):
                pending[number] += value.bytes
            first = min(readers) if made is None else made
            givers = [at[place[name]] for name in value.grad_extra_by if place[name] in at]
            for number in range(first, max(givers, default=0)):
                pending[number] += value.grad_extra_bytes
    return pending
