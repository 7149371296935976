"""Layers of a stage that are recomputed or offloaded: exactly those that the plan names.

The nodes of such a layer become a module of their own in the stage's graph, which hands it its
parameters and buffers. The rest of the graph keeps the order of the layers.

    recompute   keep what the layer takes, and run its forward again when its backward begins
    offload     keep what the layer's backward needs in host memory
"""

# pyright: reportPrivateUsage=false

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.offload import Offload
from autopart.runtime.models.attributes import lookup

Env = dict[fx.Node, fx.Node]


class RecomputedLayer(nn.Module):
    """Keeps what the layer takes; its forward runs again when its backward begins.

    No layer writes into what another one made: capturing a model puts such layers together.
    """

    def __init__(self, name: str, part: fx.GraphModule, buffers: Collection[int]) -> None:
        """`buffers` are the places of the model's buffers among the inputs."""
        super().__init__()
        self.name = name
        self.part = part
        self._buffers_at = frozenset(buffers)
        self._is_random = _is_random(part)

    def forward(self, *inputs: Any) -> Any:
        """The same random numbers are drawn both times, and statistics are kept of the first."""
        taken = [v for place, v in enumerate(inputs) if place not in self._buffers_at]
        buffers = {place: inputs[place] for place in self._buffers_at}
        written = [*buffers.values(), *self.part.buffers()]

        def run(*others: Any) -> Any:
            rest = iter(others)
            return self.part(
                *(buffers[i] if i in buffers else next(rest) for i in range(len(inputs)))
            )

        # No buffers among the arguments: torch refuses those that change before the second run.
        return checkpoint(
            run,
            *taken,
            use_reentrant=False,
            preserve_rng_state=self._is_random,
            context_fn=lambda: (nullcontext(), _kept(written)),
        )


class OffloadedLayer(nn.Module):
    """Keeps what its backward needs in host memory."""

    def __init__(self, name: str, part: fx.GraphModule) -> None:
        super().__init__()
        self.name = name
        self.part = part
        self.moved_bytes = 0
        """What left the device in the last forward."""

    def forward(self, *inputs: Any) -> Any:
        offload = Offload([value for value in inputs if isinstance(value, torch.Tensor)])
        with offload:
            outputs = self.part(*inputs)
        self.moved_bytes = offload.move_out(outputs)
        return outputs


def treat_layers(
    program: StageProgram, recompute: Collection[str], offload: Collection[str]
) -> None:
    """Recompute and offload the layers named, each in one of the two, in the stage's own graph."""
    if not (recompute or offload):
        return
    module, early, late = program.module, list[fx.Node](), list[fx.Node]()
    by_layer: dict[str, list[fx.Node]] = {name: [] for name in program.layers}
    _divide(module.graph, early, by_layer, late)
    graph, env = fx.Graph(), Env()
    for node in early:
        env[node] = graph.node_copy(node, env.__getitem__)
    for name, nodes in by_layer.items():
        if nodes and (name in recompute or name in offload):
            _call_part(module, graph, name, nodes, env, recomputes=name in recompute)
            continue
        for node in nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
    for node in late:
        env[node] = graph.node_copy(node, env.__getitem__)
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
    nodes: Sequence[fx.Node],
    env: Env,
    *,
    recomputes: bool,
) -> None:
    """Put one call in the place of the layer's nodes."""
    inside = set(nodes)
    taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    given = [n for n in taken if not _is_module(module, n)]
    made = [node for node in nodes if any(user not in inside for user in node.users)]
    part = _part(module, nodes, given, [n for n in taken if n not in given], made)
    if recomputes:
        buffers = [place for place, n in enumerate(given) if _is_buffer(module, n)]
        treated = RecomputedLayer(name, part, buffers)
    else:
        treated = OffloadedLayer(name, part)
    target = _free_name(module)
    module.add_module(target, treated)
    call = graph.call_module(target, tuple(env[n] for n in given))
    for place, node in enumerate(made):
        env[node] = call if len(made) == 1 else graph.call_function(_item, (call, place))


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


def _is_random(part: fx.GraphModule) -> bool:
    """Whether the part may draw random numbers; what a module or a region does inside is unknown."""
    return any(
        node.op == "call_module"
        or node.op == "get_attr"
        or (
            isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.nondeterministic_seeded in node.target.tags
        )
        for node in part.graph.nodes
    )


@contextmanager
def _kept(buffers: Iterable[torch.Tensor]) -> Generator[None]:
    """Put the buffers back as they were. Through ``data``: other microbatches in flight may have
    saved them, and would take a change for a fault."""
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
