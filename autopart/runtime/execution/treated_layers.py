"""Layers of a stage that are recomputed or offloaded: exactly those that the plan names.

The nodes of such a layer become a module of their own in the stage's graph, which hands it its
parameters and buffers. What the layer needs of masks, position tables and the like it computes for
itself, so that they are part of what it keeps or does not keep. The rest of the graph keeps the order
of the layers.

    recompute   keep what the layer takes, and run its forward again when its backward begins
    selective   keep besides what products with parameters give, and run only the rest again
    offload     keep what the layer's backward needs in the host's memory
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from autopart.errors import PlanError
from autopart.runtime.capture.split import AFTER, StageProgram
from autopart.runtime.execution.offload import HostStash, LayerStash
from autopart.runtime.execution.recomputed_layer import RecomputedLayer, can_keep_products
from autopart.runtime.models.attributes import lookup

Env = dict[fx.Node, fx.Node]
Treatment = Callable[[str, fx.GraphModule, Collection[int]], nn.Module]
"""Makes the module of a layer from its name, its part of the graph, and the places of the model's
buffers among what the part takes."""


def recomputing(name: str, part: fx.GraphModule, buffers: Collection[int]) -> RecomputedLayer:
    """Run the whole layer again."""
    return RecomputedLayer(name, part, buffers)


def selective(name: str, part: fx.GraphModule, buffers: Collection[int]) -> RecomputedLayer:
    """Run the layer again but for its products; raises PlanError where these cannot stay."""
    if not can_keep_products(part):
        raise PlanError(
            f"layer '{name}' cannot be recomputed selectively: it writes into what its products give, "
            "or runs a module as it is; recompute all of it"
        )
    return RecomputedLayer(name, part, buffers, keeps_products=True)


def offloading(host: HostStash) -> Treatment:
    """Keep the layer's stash on `host`."""
    return lambda name, part, _: OffloadedLayer(name, part, host)


class OffloadedLayer(nn.Module):
    """Keeps what its backward needs in the host's memory."""

    def __init__(self, name: str, part: fx.GraphModule, host: HostStash) -> None:
        super().__init__()
        self.name = name
        self.part = part
        self.moved_bytes = 0
        """What left the device in the last forward."""
        self._host = host

    def forward(self, *inputs: Any) -> Any:
        taken = [value for value in inputs if isinstance(value, torch.Tensor)]
        with LayerStash(taken, self._host) as stash:
            outputs = self.part(*inputs)
        self.moved_bytes = stash.leave(outputs)
        return outputs


def treat_layers(program: StageProgram, treatments: Mapping[str, Treatment]) -> None:
    """Put the modules that `treatments` make, by the layer's name, into the stage's own graph."""
    if not treatments:
        return
    module, early, late = program.module, list[fx.Node](), list[fx.Node]()
    by_layer: dict[str, list[fx.Node]] = {name: [] for name in program.layers}
    _divide(module.graph, early, by_layer, late)
    graph, env = fx.Graph(), Env()
    for node in early:
        env[node] = graph.node_copy(node, env.__getitem__)
    for name, nodes in by_layer.items():
        if nodes and name in treatments:
            _call_part(module, graph, name, nodes, env, treatments[name])
            continue
        for node in nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
    for node in late:
        env[node] = graph.node_copy(node, env.__getitem__)
    _drop_unused(module.graph, graph, env)
    module.graph = graph


def _divide(
    graph: fx.Graph, early: list[fx.Node], by_layer: dict[str, list[fx.Node]], late: list[fx.Node]
) -> None:
    """Each layer's operations; before them what depends on no layer (parameters, masks, what is
    received), behind them what does: the ends of the outputs."""
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
    treatment: Treatment,
) -> None:
    """Put one call in the place of the layer's nodes."""
    nodes = _with_replicated(module.graph, own)
    inside, given_out = set(nodes), set(own)
    taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    given = [n for n in taken if not _is_module(module, n)]
    made = [node for node in own if any(user not in given_out for user in node.users)]
    part = _part(module, nodes, given, [n for n in taken if n not in given], made)
    buffers = [place for place, n in enumerate(given) if _is_buffer(module, n)]
    target = _free_name(module)
    module.add_module(target, treatment(name, part, buffers))
    call = graph.call_module(target, tuple(env[n] for n in given))
    for place, node in enumerate(made):
        env[node] = call if len(made) == 1 else graph.call_function(_item, (call, place))


def _with_replicated(graph: fx.Graph, own: Sequence[fx.Node]) -> list[fx.Node]:
    """A layer's nodes and all that they need of what belongs to no layer and is computed from the
    batch and constants alone, in the graph's order."""
    found, waiting = set(own), list(own)
    by_name = {node.name: node for node in graph.nodes}
    while waiting:
        node = waiting.pop()
        for before in (*node.all_input_nodes, *(by_name[n] for n in node.meta.get(AFTER, ()))):
            if before not in found and _is_replicated(before):
                found.add(before)
                waiting.append(before)
    return [node for node in graph.nodes if node in found]


def _is_replicated(node: fx.Node) -> bool:
    """What stands at a stage's boundaries has no mark of a layer at all."""
    return node.op == "call_function" and node.meta.get("layer", "") is None


def _drop_unused(source: fx.Graph, graph: fx.Graph, env: Env) -> None:
    """Without what every layer that needs it computes for itself now; what writes into a tensor that is
    still read stays, though nobody uses its result."""
    by_name = {node.name: env[node] for node in source.nodes if node in env}
    writers = {
        env[node]: [by_name[name] for name in node.meta.get(AFTER, ()) if name in by_name]
        for node in source.nodes
        if node in env
    }
    needed = set[fx.Node]()
    for node in reversed(graph.nodes):
        if _is_replicated(node) and not node.users and node not in needed:
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
    """The layer as a module of its own: takes `given`, returns `made`."""
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
    return next(f"treated_{n}" for n in range(len(taken) + 1) if f"treated_{n}" not in taken)
