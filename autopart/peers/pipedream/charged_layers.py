"""The layers of a graph with the amounts that PipeDream charges for them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.records.layer_graph import LayerGraph, positions

Floats = npt.NDArray[np.float64]


class ChargedLayers(NamedTuple):
    """A graph's layers in its order: one entry per layer in each field."""

    compute: Floats
    """Seconds for forward and backward."""
    parameters: Floats
    """Parameter bytes."""
    outputs: Floats
    """Output bytes."""
    before: tuple[int, ...]
    """For each layer a bit mask: the layers that it reads."""
    after: tuple[int, ...]
    """For each layer a bit mask: its readers."""


def charged_layers(graph: LayerGraph) -> ChargedLayers:
    """The layers of a graph, as PipeDream counts them.

    A layer's output is the sum over its values. For a layer without readers it is its stash.
    """
    place = positions(graph)
    before, after = [0] * len(place), [0] * len(place)
    outputs = [0] * len(place)
    for value in graph.values:
        producer = place[value.producer]
        outputs[producer] += value.bytes
        for consumer in value.consumers:
            before[place[consumer]] |= 1 << producer
            after[producer] |= 1 << place[consumer]
    layers = graph.layers
    amounts = [out if after[v] else layers[v].stash_bytes for v, out in enumerate(outputs)]
    times = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
    return ChargedLayers(
        compute=np.array(times),
        parameters=np.array([la.param_bytes for la in layers], dtype=float),
        outputs=np.array(amounts, dtype=float),
        before=tuple(before),
        after=tuple(after),
    )
