"""Part of a captured graph as a graph module of its own."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import fx

LayerOf = Mapping[str, str]
"""Node name to layer name, for the nodes that are in a layer."""
After = Mapping[str, Sequence[str]]
"""Node name to the names of the nodes that must have run before, beside its arguments."""


def part_nodes(
    graph: fx.Graph, layer_of: LayerOf, after: After, layers: Collection[str]
) -> list[fx.Node]:
    """The nodes of `layers` and all that they need besides values of other layers: attributes,
    batch leaves, and the replicable nodes, which every part computes for itself. In graph order."""
    by_name = {node.name: node for node in graph.nodes}
    own = {node for node in graph.nodes if layer_of.get(node.name) in layers}
    needed, waiting = set(own), list(own)
    while waiting:
        node = waiting.pop()
        before = [*node.all_input_nodes, *(by_name[n] for n in after.get(node.name, ()))]
        for other in before:
            if other not in needed and other.name not in layer_of:
                needed.add(other)
                waiting.append(other)
    return [node for node in graph.nodes if node in needed]


def received_nodes(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """What the nodes take from outside of themselves."""
    inside = set(nodes)
    return {before for node in inside for before in node.all_input_nodes} - inside
