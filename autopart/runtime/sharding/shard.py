"""The pass: a captured graph in, the local graph of one of t ranks out.

Rules go through the graph once and shard what they can: weights by columns, what reads their results by
rows. Where a rule cannot go on, the seed (the column-split operation) to blame is banned with the
reason, and the pass starts anew. A ban holds for the seed's twins in all identical layers. So the pass
ends after at most as many attempts as there are seeds, each banned or divided into parts once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autopart.errors import ModelError
from autopart.runtime.capture.call_outputs import is_opaque
from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.collectives import copy
from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.table import write
from autopart.runtime.sharding.states import Choices, ParameterShard, Refused, ShardState

DEGREES = (2, 3, 4, 5, 6, 7, 8, 16)
"""The degrees that are tried for the message where one shards nothing."""


@dataclass(frozen=True, slots=True)
class WholeOperation:
    """An operation with parameters that every rank runs whole, and why."""

    layer: str
    operation: str
    parameters: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ShardedGraph:
    """A captured graph with its local counterpart, which is the same for all t ranks."""

    captured: Captured
    degree: int
    sequence_parallel: bool
    graph: fx.Graph
    """The local graph. Nodes that stand for a captured node have its name."""
    states: Mapping[str, ShardState]
    """How each local value relates to the whole one, by the captured node's name."""
    layer_of: Mapping[str, str]
    """Layer name for each node of the local graph that belongs to a layer."""
    shards: Mapping[str, ParameterShard]
    """The sharded parameters. All others are whole on each rank."""
    partial_parameters: frozenset[str]
    """Whole parameters whose gradients differ: their sum over the ranks is due once a step."""
    whole_operations: tuple[WholeOperation, ...]


def shard_graph(
    captured: Captured, degree: int, *, sequence_parallel: bool = False
) -> ShardedGraph:
    """Return the local graph for `degree` ranks, of at least 2.

    With `sequence_parallel`, values between sharded operations are sharded along the sequence where
    it is a multiple of the degree. Raises ModelError where no weight can be sharded, with the
    tensors and the degrees that would do, and where gradient hooks or opaque code forbid it.
    """
    check_open(captured, "tensor parallelism")
    attempt = _attempt(captured, degree, sequence_parallel=sequence_parallel)
    whole = _whole_operations(captured, attempt)
    if not attempt.shards:
        raise ModelError(_nothing(captured, degree, whole))
    return ShardedGraph(
        captured=captured,
        degree=degree,
        sequence_parallel=sequence_parallel,
        graph=attempt.graph,
        states={node.name: state for node, state in attempt.states.items()},
        layer_of=attempt.layer_of,
        shards=attempt.shards,
        partial_parameters=_put_off_sums(attempt.graph),
        whole_operations=whole,
    )


def _attempt(captured: Captured, degree: int, *, sequence_parallel: bool) -> LocalGraph:
    """Return the first attempt that goes through."""
    choices, twins = Choices(), _twins(captured)
    while True:
        attempt = LocalGraph(captured, degree, choices, sequence_parallel=sequence_parallel)
        try:
            for node in captured.module.graph.nodes:
                write(attempt, node)
        except Refused as refused:
            _learn(choices, refused, twins.get(refused.seed, (refused.seed,)))
            continue
        return attempt


def _learn(choices: Choices, refused: Refused, seeds: tuple[str, ...]) -> None:
    """Note for a seed and its twins what ended an attempt: a division into parts, or a ban."""
    seed = refused.seed
    is_new = seed not in choices.parts and seed not in choices.copies
    if refused.parts and is_new:
        choices.parts.update(dict.fromkeys(seeds, refused.parts))
    elif refused.copies > 1 and is_new:
        choices.copies.update(dict.fromkeys(seeds, refused.copies))
    else:
        assert seed not in choices.banned, f"{seed} is banned and was split: {refused}"
        choices.banned.update(dict.fromkeys(seeds, str(refused)))


def _twins(captured: Captured) -> dict[str, tuple[str, ...]]:
    """Group nodes by their place in identical layers."""
    groups: dict[tuple[str, int], list[str]] = {}
    for layer in captured.layers:
        for place, name in enumerate(layer.nodes):
            groups.setdefault((layer.fingerprint, place), []).append(name)
    return {name: tuple(group) for group in groups.values() for name in group}


def check_open(captured: Captured, what: str) -> None:
    """Raise ModelError for code that no graph holds, and for gradient hooks, which `what` does not take."""
    module = captured.module
    for node in module.graph.nodes:
        if is_opaque(node):
            layer = captured.layer_of.get(node.name, "the model")
            raise ModelError(
                f"layer '{layer}' runs code that no graph holds, and {what} divides "
                "graphs only; use degree 1"
            )
    for name, parameter in module.named_parameters():
        hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
        if any(getattr(parameter, hook, None) for hook in hooks):
            raise ModelError(
                f"parameter '{name}' has a gradient hook, which would see parts of its gradient "
                f"under {what}; remove it or use degree 1"
            )


def _put_off_sums(graph: fx.Graph) -> frozenset[str]:
    """Drop the gradient sums of whole parameters that only sharded operations read.

    Every reader's gradient is then partial, and one sum of the total per step does for all.
    """
    reads: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        reads.setdefault(str(node.target), []).extend(node.users)
    partial = {n for n, users in reads.items() if users and all(u.target is copy for u in users)}
    for name in partial:
        for node in reads[name]:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    return frozenset(partial)


def _whole_operations(captured: Captured, attempt: LocalGraph) -> tuple[WholeOperation, ...]:
    found: list[WholeOperation] = []
    for node in captured.module.graph.nodes:
        reason = attempt.kept_whole.get(node.name)
        read = (attempt.weight(n) for n in node.all_input_nodes)
        named = [str(n.target) for n in read if n is not None]
        if reason is not None:
            layer = captured.layer_of[node.name]
            found.append(WholeOperation(layer, operation_name(node), tuple(named), reason))
    return tuple(found)


def _nothing(captured: Captured, degree: int, whole: tuple[WholeOperation, ...]) -> str:
    """Return the line for a degree that shards nothing: the tensors, and degrees that would do."""
    tried = (d for d in DEGREES if d != degree)
    able = [d for d in tried if _attempt(captured, d, sequence_parallel=False).shards]
    kinds = {operation.operation: operation for operation in reversed(whole)}
    first = "; ".join(f"{o.layer}: {o.reason}" for o in list(kinds.values())[:3])
    degrees = f"degrees {', '.join(map(str, able))} would do" if able else "no degree would do"
    return f"tensor parallel degree {degree} shards no weight: {first}; {degrees}"
