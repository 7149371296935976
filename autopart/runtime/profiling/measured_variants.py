"""A measured local graph, and the variant that a profile has of it."""

from typing import NamedTuple

import msgspec

from autopart.records.group_variants import (
    GroupVariant,
    LayerCollectives,
    LoadedLayers,
    exchanges_entries,
)
from autopart.records.layer_graph import LayerGraph
from autopart.records.rank_group import Group
from autopart.runtime.profiling.measured_graph import MeasuredGraph
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.sharding.counted import layer_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs


class MeasuredVariant(NamedTuple):
    """The local graphs of a group, and the first one's measurements."""

    group: Group
    graphs: GroupGraphs
    profiled: ProfiledModel
    """The first local graph."""
    measured: MeasuredGraph
    load: float = 1.0
    """The imbalance of `loaded`."""
    loaded: MeasuredGraph | None = None
    """The same under an uneven load of experts; None where nothing is sent to experts."""

    def variant(self) -> GroupVariant:
        """Return what a profile has of it."""
        collectives = layer_collectives(self.graphs, self.profiled.captured)
        loaded = None if self.loaded is None else self.loaded.graph
        return variant_of_graphs(self.group, self.measured.graph, collectives, self.load, loaded)


def variant_of_graphs(
    group: Group,
    graph: LayerGraph,
    collectives: tuple[LayerCollectives, ...],
    load: float,
    loaded: LayerGraph | None,
) -> GroupVariant:
    """Return a variant; of `loaded` it has the layers that send to experts, each as it stands alone."""
    variant = GroupVariant(group=group, graph=graph, collectives=collectives)
    if loaded is None:
        return variant
    sending = {one.layer for one in collectives if exchanges_entries(one)}
    layers = tuple(
        msgspec.structs.replace(layer, same_as=None)
        for layer in loaded.layers
        if layer.name in sending
    )
    return msgspec.structs.replace(variant, loaded=LoadedLayers(imbalance=load, layers=layers))
