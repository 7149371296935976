"""Layer seconds where the ranks of one CPU share its memory.

Symbols   c, m     the cluster's `compute_slowdown` and `memory_slowdown`
          s        share of a layer's seconds that wait for memory (`memory_share`)

    seconds = own seconds x (1 + s (m / c - 1))         and c applies to all layers later, as a rank's speed

So the part that waits for memory takes m times as long, and the rest c times. The optimizer's step only moves
memory: its s is 1 where its operands exceed a core's caches.
"""

import msgspec

from autopart.records.cluster import Cluster
from autopart.records.layer_graph import Layer, LayerGraph, Recompute

replace = msgspec.structs.replace

CACHE_BYTES = 4 << 20
"""Bytes of a core's own caches and its share of the common one: an order of magnitude."""
_STEP_BYTES = 28
"""Bytes that one float32 element's AdamW step reads and writes: gradient, weight and two moments."""


def contended(graph: LayerGraph, cluster: Cluster) -> LayerGraph:
    """The graph with the seconds that its layers take while all ranks use memory; the graph itself if alike."""
    if cluster.memory_slowdown is msgspec.UNSET:
        return graph
    more = max(0.0, cluster.memory_slowdown / cluster.compute_slowdown - 1.0)
    if more == 0.0:
        return graph
    return replace(graph, layers=tuple(_slower(layer, more) for layer in graph.layers))


def _slower(layer: Layer, more: float) -> Layer:
    """The layer where seconds that wait for memory take `more` times their own besides."""
    share = 0.0 if layer.memory_share is msgspec.UNSET else layer.memory_share
    factor, step = 1.0 + share * more, 1.0
    if _STEP_BYTES * layer.num_trainable > CACHE_BYTES:
        step += more
    unshared = layer.unshared_update_time
    return replace(
        layer,
        forward_time=factor * layer.forward_time,
        input_grad_time=factor * layer.input_grad_time,
        weight_grad_time=factor * layer.weight_grad_time,
        split_time=factor * layer.split_time,
        update_time=step * layer.update_time,
        unshared_update_time=unshared if unshared is msgspec.UNSET else step * unshared,
        recompute=_longer(layer.recompute, factor),
        selective=_longer(layer.selective, factor),
    )


def _longer(alternative: Recompute | None, factor: float) -> Recompute | None:
    if alternative is None:
        return None
    return replace(alternative, extra_time=factor * alternative.extra_time)
