"""PipeDream's profiles (github.com/msr-fiddle/pipedream): text, one line per node, then one per
edge.

    NODE_ID -- DESCRIPTION -- forward_compute_time=F, backward_compute_time=B, activation_size=A, parameter_size=P
    <tab>SOURCE_ID -- TARGET_ID

F and B are milliseconds for one minibatch on the profiled GPU. A is the node's output in bytes for
one minibatch, or `[x; y]` for several outputs. P is parameter bytes. A description may hold commas
and equals signs. ` -- stage_id=S` may end a node's line (PipeDream's own output), and is skipped.
Blanks may stand for the tab, as in DAPPLE's files.

The rules for inputs are PipeDream's own. A source whose description starts with `Input` is a tensor
in the batch, and no layer, whatever time it carries. A sink whose description starts with
`__getitem__` is left out. A layer's name is its node's id, its kind the description. The layer
order keeps the bytes at each cut small: among ready nodes, next comes the one that adds the fewest
bytes.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from autopart.errors import FileError
from autopart.records.files import content_hash, read_content
from autopart.records.layer_graph import Input, Layer, LayerGraph, Value
from autopart.records.profile import Device, Profile, Source
from autopart.units import MOST_AMOUNT

MILLISECOND = 1e-3
FLOAT32_BYTES = 4
_FIELDS = ("forward_compute_time", "backward_compute_time", "activation_size", "parameter_size")
_NODE = re.compile(
    r"(?P<id>\S+) -- (?P<kind>.*) -- "
    + ", ".join(rf"{field}=(?P<{field}>\[[^\]]*\]|[^,\s]+)" for field in _FIELDS)
    + r"( -- stage_id=\d+)?"
)
_EDGE = re.compile(r"(\S+) -- (\S+)")
_NODE_FORM = f"'NODE_ID -- DESCRIPTION -- {'=.., '.join(_FIELDS)}=..'"


class _GraphNode(NamedTuple):
    """One node line."""

    id: str
    kind: str
    forward_time: float
    """Milliseconds."""
    backward_time: float
    """Milliseconds."""
    activation_bytes: int
    parameter_bytes: int


class _GraphText(NamedTuple):
    """The nodes by id, and the edges, as they stand in the file."""

    nodes: dict[str, _GraphNode]
    edges: tuple[tuple[str, str], ...]


def load(path: Path | str) -> Profile:
    """The profile in a PipeDream file; raises FileError, naming the line.

    The file names neither the GPU nor the minibatch size: a minibatch counts as one sample here.
    """
    return profile_of(
        path, "unknown (PipeDream's profile)", 1, ("the minibatch counts as 1 sample",)
    )


def profile_of(
    path: Path | str, device: str, microbatch_size: int, warnings: tuple[str, ...] = ()
) -> Profile:
    """The profile in a file, measured on the GPU `device` with `microbatch_size` samples.

    The file does not split backward: all its time counts as the gradient for the inputs. Each
    output stays until the backward of the layers that read it. Weights count as float32.
    """
    found = _read(Path(path))
    inputs, rest, lost = _without_inputs(found, str(path))
    graph = _graph(inputs, rest, str(path))
    if lost:
        warnings += (f"inputs took {lost:g} ms of forward, which no layer carries",)
    return Profile(
        method="imported",
        source=Source(
            model=str(path),
            graph_hash=content_hash(graph),
            num_params=sum(layer.num_trainable for layer in graph.layers),
            software={},
        ),
        device=Device(kind="cuda", name=device),
        dtype="float32",
        microbatch_size=microbatch_size,
        graph=graph,
        warnings=(*warnings, "backward is not split: all of it counts as the inputs' gradient"),
    )


def _read(path: Path) -> _GraphText:
    """The nodes and edges in a file; raises FileError, naming the line."""
    nodes: dict[str, _GraphNode] = {}
    edges: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_lines(path), 1):
        at = f"{path}, line {number}"
        if not line.strip():
            continue
        # An edge starts with a blank, a node does not.
        if line[0] in "\t ":
            edges.setdefault(_edge(line.strip(), at), number)
            continue
        node = _node(line.rstrip(), at)
        if node.id in nodes:
            raise FileError(f"{at}: a second node '{node.id}'; each id must stand once")
        nodes[node.id] = node
    if not nodes:
        raise FileError(f"{path}: it has no nodes; expected lines {_NODE_FORM}")
    for pair, number in edges.items():
        for end in pair:
            if end not in nodes:
                raise FileError(f"{path}, line {number}: the edge names an unknown node '{end}'")
    return _GraphText(nodes, tuple(edges))


def _lines(path: Path) -> list[str]:
    try:
        return read_content(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not a text file: byte {error.start} is not UTF-8") from None


def _edge(text: str, at: str) -> tuple[str, str]:
    """The two ends in an edge line."""
    match = _EDGE.fullmatch(text)
    if match is None:
        raise FileError(f"{at}: '{text}' is not an edge 'SOURCE_ID -- TARGET_ID'")
    if match[1] == match[2]:
        raise FileError(f"{at}: an edge from '{match[1]}' to itself; none may be")
    return match[1], match[2]


def _node(text: str, at: str) -> _GraphNode:
    """The node in a node line; a list of outputs counts with its sum."""
    match = _NODE.fullmatch(text)
    if match is None:
        raise FileError(f"{at}: not a node {_NODE_FORM} (an edge starts with a tab)")
    forward, backward, activation, parameters = (
        math.fsum(_amount(part, field, at) for part in match[field].strip("[]").split(";"))
        for field in _FIELDS
    )
    return _GraphNode(
        match["id"], match["kind"], forward, backward, round(activation), round(parameters)
    )


def _amount(text: str, field: str, at: str) -> float:
    """A number in a node line: finite, 0 or more."""
    try:
        amount = float(text)
    except ValueError:
        raise FileError(f"{at}: {field} is '{text.strip()}'; expected a number") from None
    if not 0 <= amount <= MOST_AMOUNT:
        raise FileError(
            f"{at}: {field} is {text.strip()}; expected a finite number from 0 to {MOST_AMOUNT:g}"
        )
    return amount


def _without_inputs(found: _GraphText, where: str) -> tuple[tuple[Input, ...], _GraphText, float]:
    """The batch's tensors, the graph without them and without unread items, and the lost time."""
    # Step 1: sources called `Input…` are tensors in the batch.
    read = {target for _, target in found.edges}
    batch = {v for v, n in found.nodes.items() if v not in read and n.kind.startswith("Input")}
    # Step 2: sinks called `__getitem__…` are read by nobody.
    edges = [(u, v) for u, v in found.edges if u not in batch]
    reads = {source for source, _ in edges}
    unread = {
        v
        for v, n in found.nodes.items()
        if v not in batch and v not in reads and n.kind.startswith("__getitem__")
    }
    nodes = {v: n for v, n in found.nodes.items() if v not in batch and v not in unread}
    if not nodes:
        raise FileError(f"{where}: all of its nodes are inputs; nothing is left to be a layer")
    # Step 3: each tensor with the layers that read it.
    inputs = [
        Input(
            name=leaf,
            consumers=tuple(v for u, v in found.edges if u == leaf and v in nodes),
            bytes=found.nodes[leaf].activation_bytes,
        )
        for leaf in found.nodes
        if leaf in batch
    ]
    kept = tuple((u, v) for u, v in edges if v in nodes)
    lost = sum(found.nodes[v].forward_time + found.nodes[v].backward_time for v in batch)
    return tuple(leaf for leaf in inputs if leaf.consumers), _GraphText(nodes, kept), lost


def _graph(inputs: tuple[Input, ...], found: _GraphText, where: str) -> LayerGraph:
    """The layer graph: one value per layer that has readers."""
    readers: dict[str, list[str]] = {v: [] for v in found.nodes}
    for u, v in found.edges:
        readers[u].append(v)
    order = _order(found, readers, where)
    place = {v: at for at, v in enumerate(order)}
    layers = tuple(_layer(found.nodes[v], is_read=bool(readers[v])) for v in order)
    values = tuple(_value(found.nodes[v], readers[v], place) for v in order if readers[v])
    return LayerGraph(layers=layers, values=values, inputs=inputs)


def _order(found: _GraphText, readers: Mapping[str, list[str]], where: str) -> list[str]:
    """The node ids in a topological order with few bytes at each cut; raises FileError on a circle."""
    sources: dict[str, list[str]] = {v: [] for v in found.nodes}
    for u, v in found.edges:
        sources[v].append(u)
    waits = {v: len(us) for v, us in sources.items()}
    unread = {v: len(vs) for v, vs in readers.items()}
    ready = [v for v, count in waits.items() if not count]
    order: list[str] = []

    def added_bytes(v: str) -> int:
        ended = sum(found.nodes[u].activation_bytes for u in sources[v] if unread[u] == 1)
        return found.nodes[v].activation_bytes - ended

    while ready:
        # Step 1: take the ready node that adds the fewest bytes; on a tie the last one, which
        # follows a branch to its end.
        v = min(reversed(ready), key=added_bytes)
        ready.remove(v)
        order.append(v)
        # Step 2: its sources have one reader less to come.
        for u in sources[v]:
            unread[u] -= 1
        # Step 3: readers whose sources are all placed become ready.
        for w in readers[v]:
            waits[w] -= 1
            if not waits[w]:
                ready.append(w)
    if len(order) < len(found.nodes):
        stuck = _some(v for v in found.nodes if waits[v])
        raise FileError(f"{where}: its edges go in a circle through or before {stuck}; none may")
    return order


def _some(names: Iterable[str]) -> str:
    """At most three names, and the number of the others."""
    listed = [f"'{name}'" for name in names]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _layer(node: _GraphNode, *, is_read: bool) -> Layer:
    return Layer(
        name=node.id,
        kind=node.kind,
        forward_time=node.forward_time * MILLISECOND,
        input_grad_time=node.backward_time * MILLISECOND,
        weight_grad_time=0.0,
        param_bytes=node.parameter_bytes,
        grad_bytes=node.parameter_bytes,
        num_trainable=node.parameter_bytes // FLOAT32_BYTES,
        stash_bytes=0 if is_read else node.activation_bytes,
    )


def _value(node: _GraphNode, readers: list[str], place: Mapping[str, int]) -> Value:
    consumers = tuple(sorted(readers, key=place.__getitem__))
    return Value(
        name=f"{node.id}.out",
        producer=node.id,
        consumers=consumers,
        bytes=node.activation_bytes,
        has_gradient=True,
        kept_by=consumers,
    )
