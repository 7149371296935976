"""The problem over one GPU of a group with sharded state, as docs/sharding.md says.

Everything is worked out layer by layer, in fractions of whole tensors, and nothing of autopart/cost is used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.records.group_variants import Collective, GroupVariant
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, TiedParameter
from autopart.records.problem import Problem
from autopart.records.training import Training
from tests.support.witness.rings import beneath_attention
from tests.support.witness.tensor import (
    cluster_of_group,
    collective_seconds,
    gpus_of,
    joined_gpus,
    layer_with_collectives,
)

WIDTHS = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


class Sharing(NamedTuple):
    """How d GPUs share state."""

    parts: int
    weights: bool
    """Whether weights are shared too: zero3."""
    once: bool
    """Whether gradients are summed once per step."""


def problem_of_shards(problem: Problem, variant: GroupVariant | None, sharing: Sharing) -> Problem:
    """The problem of a group; `problem` and `variant` are for the samples of one GPU."""
    graph = problem.graph if variant is None else variant.graph
    group = None if variant is None else variant.group
    listed = {} if variant is None else {v.layer: v.collectives for v in variant.collectives}
    sharers = [gpus_of(group) * part for part in range(sharing.parts)]
    cuts = [_in_parts(problem, graph, at, sharing, sharers) for at in range(len(graph.layers))]
    for at, layer in enumerate(graph.layers):
        if group is not None and (cuts[at].gather or cuts[at].scatter):
            joined, own = joined_gpus(group, "context"), listed.get(layer.name, ())
            cuts[at] = cuts[at]._replace(rings=beneath_attention(problem, own, joined))
    layers = tuple(
        layer_with_collectives(
            problem,
            _with_shared_state(problem, graph, at, sharing, cuts[at]),
            listed.get(layer.name, ()),
            group,
            could_hide=layer.weight_grad_time,
            more_per_step=cuts[at].per_step,
        )
        for at, layer in enumerate(graph.layers)
    )
    tied = tuple(_tied(problem.training, one, sharing) for one in graph.tied)
    return msgspec.structs.replace(
        problem,
        graph=msgspec.structs.replace(graph, layers=layers, tied=tied),
        cluster=cluster_of_group(problem.cluster, gpus_of(group) * sharing.parts),
        microbatch_size=problem.microbatch_size * sharing.parts,
        num_microbatches=problem.num_microbatches // sharing.parts,
    )


class _Seconds(NamedTuple):
    """Seconds of one layer's messages among the GPUs that share state."""

    gather: float
    scatter: float
    per_step: float
    rings: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Those of rings beneath attention, which share the links: forward, backward, and a forward that runs again."""


def _in_parts(
    problem: Problem, graph: LayerGraph, at: int, sharing: Sharing, sharers: Sequence[int]
) -> _Seconds:
    layer = graph.layers[at]

    def seconds(kind: str, size: int) -> float:
        if not size:
            return 0.0
        one = Collective(kind=kind, bytes=size, phase="step")  # pyright: ignore[reportArgumentType]
        return collective_seconds(problem, one, sharers)

    summed = _summed(problem.training, layer)
    scatter = seconds("reduce_scatter", summed) if layer.grad_bytes else 0.0
    whole = 0.0 if sharing.weights else seconds("all_gather", layer.grad_bytes)
    return _Seconds(
        gather=seconds("all_gather", layer.param_bytes) if sharing.weights else 0.0,
        scatter=0.0 if sharing.once else scatter,
        per_step=whole + (scatter if sharing.once else 0.0),
    )


def _summed(training: Training, one: Layer | TiedParameter) -> int:
    """Whole gradient bytes in the dtype of sums."""
    same = training.precision.removesuffix("-mixed") == training.gradient_dtype
    return one.grad_bytes if same else one.num_trainable * WIDTHS[training.gradient_dtype]


def _with_shared_state(
    problem: Problem, graph: LayerGraph, at: int, sharing: Sharing, took: _Seconds
) -> Layer:
    layer, d = graph.layers[at], sharing.parts

    # Blocking sends leave nothing hidden.
    def longest(compute: float, messages: float) -> float:
        return max(compute, messages) if problem.cluster.sends_overlap else compute + messages

    of_forward, of_back, again_too = took.rings
    forward = longest(layer.forward_time, took.gather + of_forward)
    back = layer.input_grad_time + layer.weight_grad_time
    whole = longest(back, took.gather + took.scatter + of_back)
    in_i = longest(layer.input_grad_time + layer.split_time, took.gather + of_back)
    in_w = longest(layer.weight_grad_time, took.scatter)

    def again(own: Recompute | None) -> Recompute | None:
        if own is None:
            return None
        on_links = took.gather + of_back + again_too
        as_whole = longest(back + own.extra_time, on_links + took.scatter) - whole
        in_split = layer.input_grad_time + layer.split_time + own.extra_time
        as_split = longest(in_split, on_links) - in_i
        return Recompute(extra_time=max(as_whole, as_split), stash_bytes=own.stash_bytes)

    alone = layer.unshared_update_time or 0.0
    fields = {
        "forward_time": forward,
        "input_grad_time": whole - in_w,
        "weight_grad_time": in_w,
        "split_time": in_i + in_w - whole,
        "update_time": alone + (layer.update_time - alone) / d,
        "recompute": again(layer.recompute),
        "selective": again(layer.selective),
    }
    return msgspec.structs.replace(layer, **(fields | _bytes(problem.training, graph, at, sharing)))


def _bytes(training: Training, graph: LayerGraph, at: int, sharing: Sharing) -> dict[str, object]:
    layer, d = graph.layers[at], sharing.parts
    in_ties = [one for one in graph.tied if layer.name in one.layers]

    def part(name: str) -> int:
        own = getattr(layer, name) - sum(getattr(one, name) for one in in_ties)
        return sum((size + d - 1) // d for size in (own, *(getattr(t, name) for t in in_ties)))

    # Neighbours: the nearest layer with parameters on either side.
    before, behind = (
        next((graph.layers[i] for i in way if graph.layers[i].param_bytes), None)
        for way in (range(at - 1, -1, -1), range(at + 1, len(graph.layers)))
    )
    ahead = layer.param_bytes + (behind.param_bytes if behind else 0)
    weights = layer.param_bytes + (before.param_bytes if before else 0)
    ahead, weights = (ahead, weights) if sharing.weights else (0, 0)
    # W passes over layers that leave nothing for it.
    later = [la for la in graph.layers[at + 1 :] if la.param_bytes]
    with_w = [la for la in later if la.split_backward is None or la.split_backward.waiting_bytes]

    def beside(behind: Sequence[Layer]) -> int:
        leaving = _summed(training, behind[0]) if behind else 0
        return 0 if sharing.once else layer.grad_bytes + leaving + (leaving + d - 1) // d

    gradients, in_w = beside(later), beside(with_w)
    waits = 0
    for one in graph.tied:
        places = sorted(i for i, la in enumerate(graph.layers) if la.name in one.layers)
        extra = one.grad_bytes - (one.grad_bytes + d - 1) // d
        if places[0] <= at < places[-1]:
            waits += extra * (len([i for i in places if i > at]) + (at in places))
    in_backward = weights + gradients + waits
    apart, split = layer.backward_workspace_bytes, layer.split_backward
    found: dict[str, object] = {
        "grad_bytes": part("grad_bytes"),
        "num_trainable": part("num_trainable"),
        "workspace_bytes": layer.workspace_bytes
        + (max(ahead, in_backward) if apart is None else ahead),
    }
    if apart is not None:
        found["backward_workspace_bytes"] = apart + in_backward
    if sharing.weights:
        found["param_bytes"] = part("param_bytes")
    if split is not None:
        found["split_backward"] = msgspec.structs.replace(
            split,
            input_grad_workspace_bytes=split.input_grad_workspace_bytes + weights,
            weight_grad_workspace_bytes=split.weight_grad_workspace_bytes + in_w,
        )
    if sharing.once and layer.grad_bytes:
        less = msgspec.structs.replace(
            layer, grad_bytes=part("grad_bytes"), num_trainable=part("num_trainable")
        )
        found["unscattered_grad_bytes"] = _summed(training, layer) - _summed(training, less)
    return found


def _tied(training: Training, tied: TiedParameter, sharing: Sharing) -> TiedParameter:
    d = sharing.parts
    less = msgspec.structs.replace(
        tied, grad_bytes=-(-tied.grad_bytes // d), num_trainable=-(-tied.num_trainable // d)
    )
    if sharing.weights:
        less = msgspec.structs.replace(less, param_bytes=-(-tied.param_bytes // d))
    if sharing.once and tied.grad_bytes:
        left = _summed(training, tied) - _summed(training, less)
        less = msgspec.structs.replace(less, unscattered_grad_bytes=left)
    return less
