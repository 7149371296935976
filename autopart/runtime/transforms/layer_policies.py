"""Activation policies in a stage's graph: layers that are recomputed or offloaded.

    recompute   keep the layer's inputs; run its forward again when its backward begins
    selective   keep also results that products with parameters make; run the rest again
    offload     keep the layer's stash in host memory

The layer's nodes move into a separate module. The stage's graph calls this module and passes
parameters and buffers to it. Masks and position tables belong to no layer; the module computes its
own copies, so the policy covers them too. All other nodes stay in layer order.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from autopart.errors import PlanError
from autopart.runtime.capture.stage_modules import AFTER, StageProgram, port
from autopart.runtime.models.attributes import lookup
from autopart.runtime.transforms.offload import HostStash, LayerStash
from autopart.runtime.transforms.recomputed_layer import RecomputedLayer, can_keep_products

Env = dict[fx.Node, fx.Node]
"""Maps nodes in the old graph to their copies in the new one."""
Policy = Callable[[str, fx.GraphModule, Collection[int]], nn.Module]
"""Makes a layer's module from its name, its nodes, and the input positions that are buffers."""


def recomputing(name: str, part: fx.GraphModule, buffers: Collection[int]) -> RecomputedLayer:
    """Policy `recompute`: the whole layer runs again."""
    return RecomputedLayer(name, part, buffers)


def selective(name: str, part: fx.GraphModule, buffers: Collection[int]) -> RecomputedLayer:
    """Policy `selective`: the layer runs again without its products.

    Raises PlanError if the products cannot be kept.
    """
    if not can_keep_products(part):
        raise PlanError(
            f"layer '{name}' cannot be recomputed selectively: it writes into a result of its "
            "products, or calls a module that was not captured; recompute all of it"
        )
    return RecomputedLayer(name, part, buffers, keeps_products=True)


def offloading(host: HostStash) -> Policy:
    """Policy `offload`: the layer's stash waits in `host`."""
    return lambda name, part, _: OffloadedLayer(name, part, host)


class OffloadedLayer(nn.Module):
    """Keeps the layer's stash in host memory."""

    def __init__(self, name: str, part: fx.GraphModule, host: HostStash) -> None:
        super().__init__()
        self.name = name
        self.part = part
        self.moved_bytes = 0
        """Bytes sent to the host in the last forward."""
        self._host = host

    def forward(self, *inputs: Any) -> Any:
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        with LayerStash(tensors, self._host) as stash:
            outputs = self.part(*inputs)
        self.moved_bytes = stash.offload(outputs)
        return outputs


def apply_policies(program: StageProgram, policies: Mapping[str, Policy]) -> None:
    """Replace each layer in `policies` by one call to the module that its policy makes.

    The stage's graph is rebuilt in place; `policies` has layer names as keys.
    """
    if policies:
        _rebuild(program, policies)


def in_layer_order(program: StageProgram) -> None:
    """Sort the stage's graph so that the nodes of each layer follow each other, in place."""
    _rebuild(program, {})


def _rebuild(program: StageProgram, policies: Mapping[str, Policy]) -> None:
    # Step 1: divide the graph into nodes before, within and behind the layers.
    module, early, late = program.module, list[fx.Node](), list[fx.Node]()
    by_layer: dict[str, list[fx.Node]] = {name: [] for name in program.layers}
    _divide(module.graph, early, by_layer, late)
    # Step 2: copy the nodes, layer by layer; a layer with a policy becomes one call.
    graph, env = fx.Graph(), Env()
    for node in early:
        env[node] = graph.node_copy(node, env.__getitem__)
    for name, nodes in by_layer.items():
        if nodes and name in policies:
            _call_part(module, graph, name, nodes, env, policies[name])
            continue
        for node in nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
    for node in late:
        env[node] = graph.node_copy(node, env.__getitem__)
    # Step 3: drop masks and the like that only layers with a policy read.
    _drop_unused(module.graph, graph, env)
    _place_ports(graph)
    module.graph = graph


def _place_ports(graph: fx.Graph) -> None:
    """Move a received value's port to where the value is first read: backward then passes it early.

    Its gradient is copied out of the larger tensor that it is part of, and that tensor is freed.
    """
    place = {node: at for at, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is port and node.users and node.all_input_nodes[0].op == "placeholder":
            min(node.users, key=place.__getitem__).prepend(node)


def _divide(
    graph: fx.Graph, early: list[fx.Node], by_layer: dict[str, list[fx.Node]], late: list[fx.Node]
) -> None:
    """Sort nodes into `early`, `by_layer` and `late`.

    Early nodes depend on no layer: parameters, masks, received tensors. Late nodes depend on layers
    but belong to none: they prepare the stage's outputs.
    """
    behind = set[fx.Node]()
    for node in graph.nodes:
        layer = node.meta.get("layer")
        if layer is not None and node.op in ("call_function", "call_module"):
            by_layer[layer].append(node)
            behind.add(node)
        elif node.op == "output" or behind.intersection(node.all_input_nodes):
            late.append(node)
            behind.add(node)
        else:
            early.append(node)


def _call_part(
    module: fx.GraphModule,
    graph: fx.Graph,
    name: str,
    own: Sequence[fx.Node],
    env: Env,
    policy: Policy,
) -> None:
    """Add one call to the new graph, in place for the layer's `own` nodes."""
    nodes = _with_layerless(module.graph, own)
    inside, given_out = set(nodes), set(own)
    taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    given = [n for n in taken if not _is_module(module, n)]
    made = [node for node in own if any(user not in given_out for user in node.users)]
    part = _part(module, nodes, given, [n for n in taken if n not in given], made)
    buffers = [place for place, n in enumerate(given) if _is_buffer(module, n)]
    target = _free_name(module)
    module.add_module(target, policy(name, part, buffers))
    call = graph.call_module(target, tuple(env[n] for n in given))
    call.meta["layer"] = name
    for place, node in enumerate(made):
        env[node] = call if len(made) == 1 else graph.call_function(_item, (call, place))
        env[node].meta["layer"] = name


def _with_layerless(graph: fx.Graph, own: Sequence[fx.Node]) -> list[fx.Node]:
    """A layer's nodes and the layerless nodes that they need, in the graph's order.

    Layerless nodes compute masks and the like from the batch and constants alone.
    """
    found, waiting = set(own), list(own)
    by_name = {node.name: node for node in graph.nodes}
    while waiting:
        node = waiting.pop()
        for before in (*node.all_input_nodes, *(by_name[n] for n in node.meta.get(AFTER, ()))):
            if before not in found and _is_layerless(before):
                found.add(before)
                waiting.append(before)
    return [node for node in graph.nodes if node in found]


def _is_layerless(node: fx.Node) -> bool:
    """Whether an operation belongs to no layer.

    The mark is `layer` with the value None. Nodes at the stage's boundaries have no such mark.
    """
    return node.op == "call_function" and node.meta.get("layer", "") is None


def _drop_unused(source: fx.Graph, graph: fx.Graph, env: Env) -> None:
    """Erase layerless nodes that nothing reads any more.

    A node that writes into a tensor stays while the tensor is read, even if its own result is not.
    """
    by_name = {node.name: env[node] for node in source.nodes if node in env}
    writers = {
        env[node]: [by_name[name] for name in node.meta.get(AFTER, ()) if name in by_name]
        for node in source.nodes
        if node in env
    }
    needed = set[fx.Node]()
    for node in reversed(graph.nodes):
        if _is_layerless(node) and not node.users and node not in needed:
            graph.erase_node(node)
        else:
            needed.update(writers.get(node, ()))


def _part(
    module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    given: Sequence[fx.Node],
    modules: Sequence[fx.Node],
    made: Sequence[fx.Node],
) -> fx.GraphModule:
    """The layer as a module with inputs `given` and outputs `made`; `modules` become attributes."""
    root, graph, env = nn.Module(), fx.Graph(), Env()
    for place, node in enumerate(given):
        env[node] = graph.placeholder(f"input_{place}")
    for place, node in enumerate(modules):
        root.add_module(f"called_{place}", lookup(module, str(node.target)))
        env[node] = graph.get_attr(f"called_{place}")
    for place, node in enumerate(nodes):
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op == "call_module":
            root.add_module(f"module_{place}", lookup(module, str(node.target)))
            env[node].target = f"module_{place}"
    results = tuple(env[node] for node in made)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, graph)


def _item(values: Sequence[Any], place: int) -> Any:
    return values[place]


def _is_module(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(lookup(module, str(node.target)), nn.Module)


def _is_buffer(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "get_attr":
        return False
    value = lookup(module, str(node.target))
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


def _free_name(module: nn.Module) -> str:
    taken = dict(module.named_children())
    return next(f"policy_{n}" for n in range(len(taken) + 1) if f"policy_{n}" not in taken)
