"""Part of a captured graph, as a separate graph module."""

from collections.abc import Collection, Mapping, Sequence

from torch import fx

LayerOf = Mapping[str, str]
"""Layer name by node name, for nodes that belong to a layer."""
After = Mapping[str, Sequence[str]]
"""For each node name, nodes that must run earlier and are not its arguments."""


def part_nodes(
    graph: fx.Graph, layer_of: LayerOf, after: After, layers: Collection[str]
) -> list[fx.Node]:
    """Return all nodes in `layers` and all nodes that they need, in graph order.

    Other layers' values are left out. Attributes, batch leaves and replicable nodes are included:
    every part computes its own.
    """
    by_name = {node.name: node for node in graph.nodes}
    own = {node for node in graph.nodes if layer_of.get(node.name) in layers}
    # Follow dependencies backward from the layers' own nodes. Stop at other layers' nodes.
    needed, waiting = set(own), list(own)
    while waiting:
        node = waiting.pop()
        before = [*node.all_input_nodes, *(by_name[n] for n in after.get(node.name, ()))]
        for other in before:
            if other not in needed and other.name not in layer_of:
                needed.add(other)
                waiting.append(other)
    return [node for node in graph.nodes if node in needed]
