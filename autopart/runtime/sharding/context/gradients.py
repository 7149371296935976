"""Where partial gradients are summed over the context or expert ranks.

A whole value that work on a rank's positions reads has a partial gradient on each rank: the ranks' sum is its gradient. A
backward is linear in the gradient that it gets, and whole operations have equal operands on all ranks. So the sum may be
put off through whole operations, back to the parameters: their gradients are summed once a step. It is due earlier
only where

- other readers of the value are whole, so that their gradients are whole and equal on all ranks, or
- the value is itself a sum over the ranks, whose backward takes a whole gradient.

There the partial readers get the value through `copy`.
"""

from collections.abc import Collection

from torch import fx

from autopart.runtime.sharding.collectives import copy
from autopart.runtime.sharding.nodes import nodes_with_gradient
from autopart.runtime.transforms.recomputed_layer import READS_NOTHING


def sum_gradients(
    module: fx.GraphModule, whole: Collection[fx.Node], layer_of: dict[str, str], group: str
) -> frozenset[str]:
    """Write the sums that cannot wait into the graph. Returns the parameters whose gradients stay partial."""
    trained, partial = nodes_with_gradient(module), set[fx.Node]()
    parameters: dict[str, list[tuple[fx.Node, list[fx.Node]]]] = {}
    for node in reversed(list(module.graph.nodes)):
        if node not in trained or node not in whole:
            continue
        readers = [user for user in node.users if user in trained]
        partially = [user for user in readers if user not in whole or user in partial]
        if node.op == "get_attr":
            if readers:
                parameters.setdefault(str(node.target), []).append((node, partially))
            continue
        is_sum = any(n in trained and n not in whole for n in node.all_input_nodes)
        if partially and (is_sum or len(partially) < len(readers)):
            _copy(module.graph, node, partially, whole, layer_of, group)
        elif partially:
            partial.add(node)
    found: set[str] = set()
    for name, reads in parameters.items():
        is_put_off = all(len(those) == len(_trained(node, trained)) for node, those in reads)
        if is_put_off and any(those for _, those in reads):
            found.add(name)
            continue
        for node, those in reads:
            _copy(module.graph, node, those, whole, layer_of, group)
    return frozenset(found)


def _trained(node: fx.Node, trained: set[fx.Node]) -> list[fx.Node]:
    return [user for user in node.users if user in trained]


def _copy(
    graph: fx.Graph,
    node: fx.Node,
    readers: list[fx.Node],
    whole: Collection[fx.Node],
    layer_of: dict[str, str],
    group: str,
) -> None:
    """Let readers take the value through a copy, one in each layer. Of several results, each is copied."""
    if node.op != "get_attr" and node.meta.get("val") is None:
        for one in readers:
            _copy(graph, one, list(one.users), whole, layer_of, group)
        return
    copies: dict[str | None, fx.Node] = {}
    places = {n: place for place, n in enumerate(graph.nodes)}
    for reader in sorted(readers, key=places.__getitem__):
        layer = layer_of.get(reader.name)
        if layer not in copies:
            with graph.inserting_before(reader):
                new = graph.create_node(
                    "call_function", copy, (node, group), {}, f"{node.name}__copy"
                )
            new.meta = {READS_NOTHING: True, "val": node.meta.get("val")}
            if layer is not None:
                layer_of[new.name] = layer
            copies[layer] = new
        reader.replace_input_with(node, copies[layer])
