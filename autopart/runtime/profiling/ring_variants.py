"""The variant with a ring, derived from the one that gathers keys and values.

Both have the same compute. So seconds are taken from the gathering variant, and the ring's local graph is only
asked for its bytes and messages. This assumes that merging takes no time, and that attention to one block takes an
equal part of attention to all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from autopart.records.gpu import Gpu
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Layer
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.measuring.stopwatch import Gradients, PendingTime
from autopart.runtime.profiling.kernel_times import kernel_seconds
from autopart.runtime.profiling.measured_graph import with_own_bytes
from autopart.runtime.profiling.measured_variants import MeasuredVariant, variant_of_graphs
from autopart.runtime.profiling.op_costs import OpCost, OpCosts
from autopart.runtime.profiling.options import ProfileOptions, kernels_asked
from autopart.runtime.profiling.profiled_model import ProfiledModel, local_profiled
from autopart.runtime.profiling.roofline import roofline_time
from autopart.runtime.profiling.rounds import measure_layers
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.counted import layer_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs

T = TypeVar("T")


def ring_variant(
    whole: ProfiledModel,
    gather: MeasuredVariant,
    graphs: GroupGraphs,
    options: ProfileOptions,
    gpu: Gpu | None,
    steps: StepCounter,
) -> GroupVariant:
    """Return the variant of `graphs`, which have a ring. `whole` is the model."""
    with gather.graphs.alone():
        shares = _attention_shares(gather.profiled, options, gpu)
    local = graphs.local(0)
    own = local_profiled(whole, local)
    with graphs.alone():
        steps.add(1)
        graph = with_own_bytes(own, gather.measured.times, options, steps)
    loaded = None
    if gather.loaded is not None:
        with graphs.alone(gather.load):
            steps.add(1)
            loaded = with_own_bytes(own, gather.loaded.times, options, steps)
    listed = layer_collectives(graphs, local)
    counts = {layer.name: _rings(graphs, layer.name) for layer in local.layers}
    layers = {layer.name: layer for layer in graph.layers}
    places = {layer.name: at for at, layer in enumerate(local.layers)}
    collectives = tuple(
        _with_compute(one, layers[one.layer], shares[places[one.layer]], sum(counts[one.layer]))
        for one in listed
    )
    group = msgspec.structs.replace(gather.group, exchange="ring")
    return variant_of_graphs(group, graph, collectives, gather.load, loaded)


def _rings(graphs: GroupGraphs, layer: str) -> tuple[int, int]:
    """Return how many attentions of a layer have a ring, and how many gather."""
    assert graphs.context is not None
    local = graphs.context.local
    rings = local.module.graph.find_nodes(op="call_function", target=ring_attention)
    own = sum(local.layer_of.get(node.name) == layer for node in rings)
    gathering = sum(what.startswith(f"layer '{layer}': ") for what in graphs.context.gathering)
    return own, gathering


def _with_compute(
    own: LayerCollectives, layer: Layer, shares: "_Shares", attentions: int
) -> LayerCollectives:
    """The collectives with the seconds of attention beneath each ring; a layer's attentions count alike."""
    backward = layer.input_grad_time + layer.weight_grad_time
    spent = {
        "forward": shares.forward * layer.forward_time,
        "input_grad": shares.backward * backward,
    }

    def filled(one: Collective) -> Collective:
        if one.kind != "ring":
            return one
        return msgspec.structs.replace(one, compute_time=spent[one.phase] / attentions)

    return LayerCollectives(layer=own.layer, collectives=tuple(map(filled, own.collectives)))


class _Shares(NamedTuple):
    """Parts of a layer's seconds that attention takes."""

    forward: float
    backward: float


def _attention_shares(
    profiled: ProfiledModel, options: ProfileOptions, gpu: Gpu | None
) -> Sequence[_Shares]:
    """Return each layer's shares, by the model of the GPU. Where times were measured, by operations.

    Attention reaches a smaller rate than products do. So its share by operations is too small, and too little counts as
    hidden.
    """
    with OpCosts() as costs:
        stopwatch = _ShareWatch(costs, _pricing(profiled, options, gpu))
        readings = measure_layers(profiled.timed_plainly, stopwatch, split=False)
    at = range(len(profiled.captured.layers))
    return [_Shares(_read(readings.forward, i), _read(readings.backward, i)) for i in at]


def _read(readings: Mapping[int, PendingTime], index: int) -> float:
    return readings[index]() if index in readings else 0.0


Pricing = Callable[[Sequence[OpCost]], float]


def _pricing(profiled: ProfiledModel, options: ProfileOptions, gpu: Gpu | None) -> Pricing:
    if gpu is None:
        return lambda costs: float(sum(cost.flops for cost in costs))
    kernels, dtype = kernels_asked(options, gpu), profiled.dtype
    if kernels is None:
        return lambda costs: roofline_time(costs, gpu, dtype)
    return lambda costs: kernel_seconds(costs, gpu, kernels, dtype)


class _ShareWatch:
    """A stopwatch that reads attention's share of an action."""

    counts_host_work = False
    waiting_share = 0.0

    def __init__(self, costs: OpCosts, pricing: Pricing) -> None:
        self._costs, self._pricing = costs, pricing

    def measure(self, action: Callable[[], T]) -> tuple[T, PendingTime]:
        self._costs.take()
        result = action()
        costs = self._costs.take()
        own = [cost for cost in costs if cost.kind == "attention"]
        whole = self._pricing(costs)
        share = self._pricing(own) / whole if whole else 0.0
        return result, lambda: share

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        forward()
        return self.measure(backward)

    def settle(self) -> None:
        """Return at once: the readings are computed."""
