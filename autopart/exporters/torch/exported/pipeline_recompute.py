"""Recomputed layers: their forward runs again in backward.

Written by autopart, for `pipeline_cut.py`.
"""

import operator
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from pipeline_capture import calls_of
from pipeline_plan import SELECTIVE, STAGE_OF_LAYER


def recompute_layer(graph: fx.Graph, root: dict[str, Any], layer: str) -> None:
    """Replace the layer's nodes by one call that runs them again in backward."""
    # Step 1: make the layer's nodes adjacent.
    nodes = [n for n in graph.nodes if n.op.startswith("call") and _layer(n) == layer]
    if not nodes:
        return
    _bring_together(graph, nodes, layer)
    # Step 2: find the values that go in (`given`) and come out (`made`). Build the inner module.
    inside = set(nodes)

    def is_outside(user: fx.Node) -> bool:
        return user not in inside

    taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    given = [n for n in taken if not isinstance(root.get(n.target), nn.Module)]
    made = [n for n in nodes if any(user not in inside for user in n.users)]
    part = _part(root, nodes, given, [n for n in taken if n not in given], made)
    held = [n.op == "get_attr" and not isinstance(root[n.target], nn.Parameter) for n in given]
    name = f"recomputed_{sum(key.startswith('recomputed_') for key in root)}"
    root[name] = _Recomputed(part, held, layer in SELECTIVE)
    # Step 3: users outside the layer read the call's results; the old nodes go.
    with graph.inserting_before(nodes[0]):
        call = graph.call_module(name, tuple(given))
        for place, node in enumerate(made):
            item = graph.call_function(operator.getitem, (call, place))
            node.replace_all_uses_with(item, delete_user_cb=is_outside)
    for node in reversed(nodes):
        graph.erase_node(node)


def _layer(node: fx.Node) -> str | None:
    """The planned layer that contains the node, or None."""
    return next((name for name in calls_of(node) if name in STAGE_OF_LAYER), None)


def _bring_together(graph: fx.Graph, nodes: Sequence[fx.Node], layer: str) -> None:
    """Move other nodes away from between the layer's nodes.

    A node that needs the layer's results goes behind them, any other before them. Raises ValueError
    where the layer itself needs a node that goes behind it.
    """
    order = list(graph.nodes)
    behind: set[fx.Node] = set()
    last = nodes[-1]
    for node in order[order.index(nodes[0]) : order.index(nodes[-1])]:
        if node in nodes:
            if behind.intersection(node.all_input_nodes):
                raise ValueError(f"layer '{layer}' needs what is computed from it: keep its stash")
        elif behind.union(nodes).intersection(node.all_input_nodes):
            behind.add(node)
            last.append(node)
            last = node
        else:
            nodes[0].prepend(node)


def _part(
    root: dict[str, Any],
    nodes: Sequence[fx.Node],
    given: Sequence[fx.Node],
    modules: Sequence[fx.Node],
    made: Sequence[fx.Node],
) -> fx.GraphModule:
    """The nodes as a module that takes `given` and returns `made`."""
    graph, own = fx.Graph(), {}
    env = {node: graph.placeholder(f"given_{place}") for place, node in enumerate(given)}
    for node in [*modules, *nodes]:
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op in ("get_attr", "call_module"):
            own[str(node.target)] = root[str(node.target)]
    graph.output(tuple(env[node] for node in made))
    return fx.GraphModule(own, graph)


class _Recomputed(nn.Module):
    """Runs a part of the graph again in backward, with the same random numbers."""

    def __init__(self, part: fx.GraphModule, held: Sequence[bool], keeps_products: bool) -> None:
        super().__init__()
        self.part = part
        self.held = held  # True for inputs that are the model's buffers
        self.keeps_products = keeps_products

    def forward(self, *given: Any) -> tuple[Any, ...]:
        buffers = [value for value, is_held in zip(given, self.held, strict=True) if is_held]

        def run(*moving: Any) -> tuple[Any, ...]:
            rest, own = iter(moving), iter(buffers)
            return self.part(*(next(own) if is_held else next(rest) for is_held in self.held))

        def contexts() -> tuple[Any, Any]:
            first, again = nullcontext(), nullcontext()
            if self.keeps_products:
                first, again = create_selective_checkpoint_contexts(_keep_products)
            return first, _unchanged(buffers, again)

        # Buffers bypass torch's checkpoint, which refuses arguments that change before the rerun.
        moving = [value for value, is_held in zip(given, self.held, strict=True) if not is_held]
        return checkpoint(run, *moving, use_reentrant=False, context_fn=contexts)


@contextmanager
def _unchanged(buffers: Sequence[torch.Tensor], inner: Any) -> Any:
    """Restore the buffers after the second run, so that running statistics count once."""
    before = [buffer.clone() for buffer in buffers]
    try:  # torch stops the second run by an exception once it has every value it needs
        with inner:
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # `.data`: microbatches in flight may have saved it


_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
}


def _keep_products(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keeps = operation in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
