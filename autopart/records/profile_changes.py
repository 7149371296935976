"""Two profiles of one model, or of two revisions of it, layer by layer."""

from typing import NamedTuple

from autopart.records.layer_graph import Layer
from autopart.records.profile import Profile


class LayerChange(NamedTuple):
    """One layer in two profiles."""

    name: str
    before: Layer | None
    """The layer in the first profile; None where it is new."""
    after: Layer | None
    """The layer in the second profile; None where it is gone."""


def layer_seconds(layer: Layer | None) -> float:
    """Forward and backward seconds for one microbatch; 0 for no layer."""
    if layer is None:
        return 0.0
    return layer.forward_time + layer.input_grad_time + layer.weight_grad_time


def layer_changes(before: Profile, after: Profile) -> tuple[LayerChange, ...]:
    """Every layer of both profiles by its name, in the order of the second one; layers that are gone stand last."""
    old = {layer.name: layer for layer in before.graph.layers}
    new = {layer.name: layer for layer in after.graph.layers}
    found = [LayerChange(name, old.get(name), layer) for name, layer in new.items()]
    found += [LayerChange(name, layer, None) for name, layer in old.items() if name not in new]
    return tuple(found)
