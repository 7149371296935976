"""Results of all nodes in a traced graph, and their true dependencies.

The graph runs once on fake tensors, which have shapes and storages but no data, with the true
``requires_grad`` flags. The run shows which nodes share a storage: readers depend on earlier nodes
that wrote into it. The run also shows to which tensors a gradient flows back.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node as GradNode
from torch.autograd.graph import get_gradient_edge
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_outputs import META_KEY, fake_output
from autopart.runtime.capture.tracing import Traced
from autopart.runtime.measuring.saved_tensors import storage_key
from autopart.runtime.models.attributes import lookup

_HIDDEN_WRITES = {
    torch.ops.aten.batch_norm.default: (3, 4, 5),
    torch.ops.aten.instance_norm.default: (3, 4, 5),
}
"""Operations that write although their schema does not say so.

Each has its argument places for running mean, running variance and the flag that enables the
writes.
"""


@dataclass(frozen=True, slots=True)
class Fact:
    """One node's result."""

    value: Any
    """The fake tensor, or any other result."""
    storages: frozenset[int]
    has_gradient: bool = False


@dataclass(slots=True)
class Dataflow:
    """True dependencies between a graph's nodes."""

    facts: dict[fx.Node, Fact] = field(default_factory=dict)
    writes: dict[fx.Node, frozenset[int]] = field(default_factory=dict)
    """Storages into which each node writes. A node that writes nowhere is missing."""
    after: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    """For each node, the latest nodes that wrote into its inputs, except its own arguments."""
    state: dict[int, str] = field(default_factory=dict)
    """First name for each storage that belongs to a parameter or buffer."""
    replicable: frozenset[fx.Node] = frozenset()
    """Nodes that any stage can compute for itself.

    They depend on the batch and on constant buffers only, not on parameters or randomness.
    """


def facts_and_writes(traced: Traced) -> Dataflow:
    """Run the graph on fake tensors and note each node's result and the storages it writes."""
    flow = Dataflow()
    _run_on_fakes(traced, flow)
    for node in traced.module.graph.nodes:
        written = _writes(node, flow)
        if written:
            flow.writes[node] = written
    return flow


def find_dependencies(module: fx.GraphModule, flow: Dataflow) -> None:
    """Complete `flow` with the order that writes demand and with the replicable nodes.

    Nodes that neither the loss nor the model's state needs are erased.
    """
    _order_after_writers(module.graph, flow)
    _erase_dead(module.graph, flow)
    flow.replicable = _replicable(module, flow)


def dependencies(node: fx.Node, flow: Dataflow) -> Iterator[fx.Node]:
    """Yield the nodes that must run before `node`."""
    yield from node.all_input_nodes
    yield from flow.after.get(node, ())


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return all tensors in one result."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def read_storages(node: fx.Node, flow: Dataflow) -> frozenset[int]:
    """Return the storages below all inputs of the node."""
    return frozenset().union(*(flow.facts[n].storages for n in node.all_input_nodes))


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, flow: Dataflow) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._mode = mode
        self._flow = flow

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, torch.Tensor):
            return value
        return self._mode.from_tensor(value, static_shapes=True)

    def run_node(self, n: fx.Node) -> Any:
        # Operations without a schema show their writes in the version counters of their inputs.
        inputs = tensors_of([self.env[i] for i in n.all_input_nodes])
        before = [tensor._version for tensor in inputs]
        opaque = META_KEY in n.meta
        value = self._run_opaque(n, inputs) if opaque else super().run_node(n)
        if not isinstance(n.target, OpOverload):
            changed = [t for t, v in zip(inputs, before, strict=True) if t._version != v]
            if changed:
                before_now = self._flow.writes.get(n, frozenset())
                self._flow.writes[n] = before_now | frozenset(map(storage_key, changed))
        storages = frozenset(map(storage_key, tensors_of(value)))
        self._flow.facts[n] = Fact(value, storages)
        if n.op == "get_attr":
            for storage in storages:
                self._flow.state.setdefault(storage, str(n.target))
        return value

    def _run_opaque(self, node: fx.Node, inputs: list[torch.Tensor]) -> Any:
        """Note that an opaque module may write into each buffer, and return a fake output."""
        parameters: list[torch.Tensor] = []
        if node.op == "call_module":
            inside = lookup(self.module, str(node.target))
            parameters = [
                self._mode.from_tensor(p, static_shapes=True) for p in inside.parameters()
            ]
            written: list[int] = []
            for name, buffer in inside.named_buffers():
                written.append(storage_key(self._mode.from_tensor(buffer, static_shapes=True)))
                self._flow.state.setdefault(written[-1], f"{node.target}.{name}")
            self._flow.writes[node] = frozenset(written)
        return fake_output(node.meta[META_KEY], [*inputs, *parameters])


def _run_on_fakes(traced: Traced, flow: Dataflow) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    given = [leaf.value for leaf in traced.leaves if isinstance(leaf.value, torch.Tensor)]
    with mode, torch.enable_grad():
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in given]
        loss = _Recorder(traced.module, mode, flow).run(*fakes)
    reached = _gradient_edges(loss)
    for node, fact in flow.facts.items():
        if isinstance(fact.value, torch.Tensor) and fact.value.requires_grad:
            edge = get_gradient_edge(fact.value)
            has_gradient = (edge.node, edge.output_nr) in reached
            flow.facts[node] = Fact(fact.value, fact.storages, has_gradient)


def _gradient_edges(loss: torch.Tensor) -> set[tuple[GradNode, int]]:
    """Return all places in the autograd graph that a gradient of the loss reaches."""
    if not loss.requires_grad:
        return set()
    edge = get_gradient_edge(loss)
    reached = {(edge.node, edge.output_nr)}
    # Walk the autograd graph from the loss. An edge counts even where its function was seen before.
    waiting, seen = [edge.node], {edge.node}
    while waiting:
        for function, output in waiting.pop().next_functions:
            if function is None:
                continue
            reached.add((function, output))
            if function not in seen:
                seen.add(function)
                waiting.append(function)
    return reached


def _writes(node: fx.Node, flow: Dataflow) -> frozenset[int]:
    if not isinstance(node.target, OpOverload):
        return flow.writes.get(node, frozenset())
    written: set[int] = set()
    if node.target is torch.ops.aten.detach_.default:
        return frozenset()  # it changes the tensor's history, not its values
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= _storages(_argument(node, place, argument.name), flow)
    if node.target in _HIDDEN_WRITES:
        *places, flag = _HIDDEN_WRITES[node.target]
        if node.args[flag]:
            written |= set().union(*(_storages(node.args[place], flow) for place in places))
    return frozenset(written)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _storages(argument: Any, flow: Dataflow) -> set[int]:
    found: set[int] = set()
    fx.map_arg(argument, lambda n: found.update(flow.facts[n].storages))
    return found


def _order_after_writers(graph: fx.Graph, flow: Dataflow) -> None:
    # The latest writer of each storage, while the nodes are passed in order.
    last: dict[int, fx.Node] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        touched = read_storages(node, flow)
        writers = {last[storage] for storage in touched if storage in last}
        writers -= set(node.all_input_nodes)
        if writers:
            flow.after[node] = tuple(sorted(writers))
        for storage in flow.writes.get(node, ()):
            last[storage] = node


def _erase_dead(graph: fx.Graph, flow: Dataflow) -> None:
    """Erase all nodes except those that the loss needs or that change the model's state."""
    live: set[fx.Node] = set()
    waiting = [graph.output_node()]
    # Start at the loss and at writes into the model's state, then follow dependencies backward.
    waiting += [n for n, written in flow.writes.items() if not written.isdisjoint(flow.state)]
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting.extend(dependencies(node, flow))
    for node in reversed(list(graph.nodes)):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)
            flow.writes.pop(node, None)
            flow.after.pop(node, None)


def _replicable(module: fx.GraphModule, flow: Dataflow) -> frozenset[fx.Node]:
    changed = {storage for written in flow.writes.values() for storage in written}
    # Step 1: nodes that are bound by themselves.
    bound = {node for node in module.graph.nodes if _is_bound(node, module, flow, changed)}
    while True:
        for node in module.graph.nodes:
            # Step 2: a node that depends on a bound node is bound.
            if any(before in bound for before in dependencies(node, flow)):
                bound.add(node)
        # Step 3: a node that shares a storage into which a bound node writes is bound. Then repeat.
        tainted = _storages_of(flow.writes[n] for n in bound if n in flow.writes)
        more = {
            node
            for node in module.graph.nodes
            if node not in bound
            and node.op == "call_function"
            and not tainted.isdisjoint(flow.facts[node].storages)
        }
        if not more:
            break
        bound |= more
    return frozenset(n for n in module.graph.nodes if n.op == "call_function" and n not in bound)


def _storages_of(parts: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*parts)


def _is_bound(node: fx.Node, module: fx.GraphModule, flow: Dataflow, changed: set[int]) -> bool:
    """Tell whether the node alone ties its dependents to one stage."""
    if node.op == "get_attr":
        value = lookup(module, str(node.target))
        is_parameter = isinstance(value, nn.Parameter)
        return is_parameter or not changed.isdisjoint(flow.facts[node].storages)
    if node.op == "call_module":
        return True
    if isinstance(node.target, HigherOrderOperator):
        regions = [n for n in node.all_input_nodes if n.op == "get_attr"]
        inside = [lookup(module, str(n.target)) for n in regions]
        return any(isinstance(m, fx.GraphModule) and _draws_or_writes(m) for m in inside)
    return _is_random(node)


def _is_random(node: fx.Node) -> bool:
    return (
        isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def _draws_or_writes(module: fx.GraphModule) -> bool:
    return any(
        _is_random(node)
        or isinstance(node.target, HigherOrderOperator)
        or (isinstance(node.target, OpOverload) and node.target._schema.is_mutable)
        for node in module.graph.nodes
    )
