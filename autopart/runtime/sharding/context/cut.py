"""The context pass: a captured graph in, the local graph of one of c ranks out.

The captured graph may be the local graph of a tensor rank. Its collectives are then ordinary operations, which act
inside a context rank's positions.

The first attempt finds what is cut, and how whole values are read. The second computes only the positions of whole
values that nobody reads whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.attributes import attach, is_persistent, lookup
from autopart.runtime.sharding.captured_nodes import CapturedNodes
from autopart.runtime.sharding.context.arguments import writes
from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.expert_weights import expert_weights
from autopart.runtime.sharding.context.gradients import sum_gradients
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.context.rules.following import choose
from autopart.runtime.sharding.context.rules.table import write
from autopart.runtime.sharding.context.states import ContextRefused, Rows, State
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.local_model import described, local_tensor, observe
from autopart.runtime.sharding.shard import check_open
from autopart.runtime.sharding.states import ParameterShard


@dataclass(frozen=True, slots=True)
class ContextGraph:
    """A captured graph cut for c context ranks or e expert ranks, which all run the same local graph."""

    captured: Captured
    degree: int
    group: str
    """The name of the group in which the ranks exchange: context or expert."""
    local: Captured
    """The local graph as a captured model. It reads the captured model's own parameters, which are whole, and slices
    of those with experts."""
    shards: Mapping[str, ParameterShard]
    """Parameters with experts, of which each rank has its slice. Their gradients are those of the slices."""
    partial_parameters: frozenset[str]
    """Parameters whose gradients differ: their sum over the ranks is due once a step."""
    states: Mapping[str, State]
    """How each local value relates to the whole one, by the captured node's name."""
    ring: bool = False
    """Whether keys and values go around a ring."""
    gathering: Mapping[str, str] = field(default_factory=dict)
    """With a ring, the operations that gather all the same, and why."""


def cut_context(captured: Captured, degree: int, *, ring: bool = False) -> ContextGraph:
    """Return the local graph for `degree` ranks, of at least 2, with keys and values around a `ring` where this can be.

    Where `captured` is a tensor rank's local graph, its group must be registered. Raises ContextRefused where the
    sequence cannot be cut, with the layer and the operation, and where no attention can have a ring.
    """
    return _cut(captured, degree, None, ring=ring)


def cut_samples(captured: Captured, degree: int) -> ContextGraph:
    """Return the local graph for `degree` expert ranks, of at least 2, as `cut_context` does.

    Raises ContextRefused where the model has no experts too.
    """
    experts = expert_weights(CapturedNodes(captured), degree)
    return _cut(captured, degree, experts)


def _cut(
    captured: Captured, degree: int, experts: Mapping[str, int] | None, *, ring: bool = False
) -> ContextGraph:
    what = "context" if experts is None else "expert"
    check_open(captured, f"{what} parallelism")
    attempt = _attempt(captured, degree, {}, experts, ring=ring)
    if len(attempt.samples) > 1 and experts is not None:
        sizes = " and ".join(str(size) for size in sorted(attempt.samples))
        raise ContextRefused(
            f"expert degree {degree}: inputs have different numbers of samples: {sizes}; use expert degree 1"
        )
    if not attempt.has_roots and experts is not None:
        raise ContextRefused(
            f"expert degree {degree}: no input has samples; they are found from whole numbers (batch, sequence) "
            "that an embedding reads, or from inputs (batch, …); use expert degree 1"
        )
    if not attempt.has_roots:
        raise ContextRefused(
            f"context degree {degree}: no input has a sequence; it is found from whole numbers (batch, sequence) "
            "that an embedding reads, or from inputs (batch, sequence, width); use context degree 1"
        )
    if chosen := choose(attempt):
        attempt = _attempt(captured, degree, chosen, experts, ring=ring)
    if ring:
        _check_ring(attempt)
    if attempt.unsound is not None:
        raise ContextRefused(
            f"{what} degree {degree}: {attempt.unsound}, so nothing can be cut; use {what} degree 1"
        )
    _drop_unread(attempt.graph, {value.name for value in captured.values})
    shards = {name: ParameterShard(0) for name in attempt.experts}
    module = _attached(attempt.graph, captured.module, shards, degree, 0)
    names = {node.name for node in attempt.whole_nodes}
    with registered(attempt.group, LoneRank(degree)):
        observe(module, captured, names)
    layer_of = dict(attempt.layer_of)
    whole = [node for node in module.graph.nodes if node.name in names]
    partial = sum_gradients(module, set(whole), layer_of, attempt.group)
    module.recompile()
    return ContextGraph(
        captured=captured,
        degree=degree,
        group=attempt.group,
        shards=shards,
        local=described(captured, module, layer_of),
        partial_parameters=partial,
        states={node.name: state for node, state in attempt.states.items()},
        ring=ring,
        gathering=attempt.gathering,
    )


def _check_ring(attempt: ContextBuilder) -> None:
    """Raise ContextRefused where nothing goes around the ring."""
    if attempt.graph.find_nodes(op="call_function", target=ring_attention):
        return
    reasons = [f"{what} {why}" for what, why in attempt.gathering.items()]
    raise ContextRefused(
        f"context degree {attempt.degree}: no attention can pass keys and values around a ring"
        f"{f': {reasons[0]}' if reasons else ''}; gather them"
    )


def context_module(context: ContextGraph, source: fx.GraphModule, rank: int) -> fx.GraphModule:
    """Return the rank's local graph over the tensors of `source`, which has the captured model's by name."""
    graph = context.local.module.graph
    return _attached(graph, source, context.shards, context.degree, rank)


def _attempt(
    captured: Captured,
    degree: int,
    chosen: Mapping[str, Rows],
    experts: Mapping[str, int] | None,
    *,
    ring: bool,
) -> ContextBuilder:
    attempt = ContextBuilder(captured, degree, chosen, experts, ring=ring)
    for node in captured.module.graph.nodes:
        write(attempt, node)
    return attempt


def _drop_unread(graph: fx.Graph, kept: set[str]) -> None:
    """Drop operations that nobody reads: repetitions of keys that are now made behind the gather."""
    for node in reversed(list(graph.nodes)):
        is_free = node.op == "call_function" and not node.users and not writes(node)
        if is_free and node.name not in kept:
            graph.erase_node(node)


def _attached(
    graph: fx.Graph,
    source: fx.GraphModule,
    shards: Mapping[str, ParameterShard],
    degree: int,
    rank: int,
) -> fx.GraphModule:
    module, new, env = nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        env[node] = new.node_copy(node, env.__getitem__)
        env[node].name = node.name
    for name in {str(node.target): None for node in new.find_nodes(op="get_attr")}:
        own = lookup(source, name)
        if name in shards:
            slice_ = local_tensor(own.detach(), shards[name], degree, rank)
            attach(module, name, nn.Parameter(slice_, requires_grad=own.requires_grad))
            continue
        is_buffer = not isinstance(own, nn.Parameter)
        attach(
            module, name, own, **({"persistent": is_persistent(source, name)} if is_buffer else {})
        )
    return fx.GraphModule(module, new)
