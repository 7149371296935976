"""Small problems for tests: chains and branching graphs with all kinds of terms."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import Input, Layer, LayerGraph, TiedParameter, Value
from autopart.records.prediction import MemoryUse
from autopart.records.problem import Demands, Problem
from autopart.records.profile import Device, Profile, Source
from autopart.records.training import Training

TRAININGS = (
    Training(),
    Training(zero1=True),
    Training(precision="bfloat16-mixed", gradient_dtype="float32", zero1=True),
    Training(optimizer="3", precision="bfloat16", gradient_dtype="bfloat16"),
)
"""Trainings with and without ZeRO shards."""


def layer(name: str, **fields: Any) -> Layer:
    """A layer with 1 s forward and 2 s backward unless `fields` say otherwise."""
    base: dict[str, Any] = {
        "forward_time": 1.0,
        "input_grad_time": 1.0,
        "weight_grad_time": 1.0,
    }
    return Layer(name=name, kind="Linear", **(base | fields))


def value(producer: str, *consumers: str, **fields: object) -> Value:
    """A value with 8 bytes and a gradient unless `fields` say otherwise."""
    base = {"bytes": 8, "has_gradient": True}
    return Value(name=f"{producer}.out", producer=producer, consumers=consumers, **(base | fields))


def chain_graph(*layers: Layer, num_bytes: int = 8) -> LayerGraph:
    """Layers in a row; each passes `num_bytes` to the next."""
    pairs = itertools.pairwise(layers)
    values = tuple(value(a.name, b.name, bytes=num_bytes) for a, b in pairs)
    return LayerGraph(layers=layers, values=values)


def cluster(num_nodes: int = 1, gpus_per_node: int = 4, **fields: object) -> Cluster:
    """A cluster with fast free links and plenty of memory unless `fields` say otherwise."""
    base = {
        "memory_bytes": 1 << 40,
        "intra_node": Link(bandwidth=1e12),
        "inter_node": Link(bandwidth=1e11),
    }
    return Cluster(gpu="test", num_nodes=num_nodes, gpus_per_node=gpus_per_node, **(base | fields))


def problem(graph: LayerGraph, num_microbatches: int = 4, **fields: object) -> Problem:
    """A problem over `graph` on one node with four GPUs unless `fields` say otherwise."""
    base = {"cluster": cluster(), "microbatch_size": 1, "demands": Demands()}
    return Problem(graph=graph, num_microbatches=num_microbatches, **(base | fields))


def memory_use(**fields: int) -> MemoryUse:
    """A memory use with the bytes in `fields`, and 0 for all other kinds."""
    return MemoryUse(**(dict.fromkeys(MemoryUse.__struct_fields__, 0) | fields))


def profile(graph: LayerGraph) -> Profile:
    """A profile with `graph`."""
    return Profile(
        method="imported",
        source=Source(model="test", graph_hash="0" * 16, num_params=0, software={}),
        device=Device(kind="cpu", name="test"),
        dtype="float32",
        microbatch_size=1,
        graph=graph,
    )


def random_graph(rng: random.Random, num_layers: int, branching: bool) -> LayerGraph:
    """A graph with random layers, values, inputs and tied parameters.

    Unless `branching`, it is a chain with skips.
    """
    names = [f"layer{i}" for i in range(num_layers)]
    layers = tuple(_random_layer(rng, name) for name in names)
    values = [
        _random_value(rng, f"v{i}", names[i], names[i + 1 : i + 2])
        for i in range(num_layers - 1)
        if not branching or rng.random() < 0.6
    ]
    for number in range(rng.randrange(num_layers)):
        if num_layers > 1:
            at = rng.randrange(num_layers - 1)
            later = rng.sample(names[at + 1 :], rng.randint(1, min(2, num_layers - at - 1)))
            values.append(_random_value(rng, f"skip{number}", names[at], later))
    inputs = tuple(
        Input(
            name=f"in{i}",
            consumers=tuple(rng.sample(names, min(2, num_layers))),
            bytes=rng.randrange(9),
        )
        for i in range(rng.randrange(3))
    )
    tied = _random_tied(rng, layers)
    graph = LayerGraph(layers=layers, values=tuple(values), inputs=inputs, tied=tied)
    # A separate generator leaves all later draws unchanged.
    own = random.Random(sum(la.stash_bytes + la.workspace_bytes for la in layers))
    return with_gradients(own, graph) if own.random() < 0.7 else graph


def with_gradients(rng: random.Random, graph: LayerGraph) -> LayerGraph:
    """The graph with value gradients counted apart; some are parts of larger tensors."""
    layers = (
        msgspec.structs.replace(la, backward_workspace_bytes=rng.randrange(30))
        for la in graph.layers
    )
    values = (
        msgspec.structs.replace(
            v,
            grad_extra_bytes=rng.randrange(1, 30),
            grad_extra_by=tuple(rng.sample(v.consumers, rng.randint(1, len(v.consumers)))),
        )
        if v.has_gradient and v.consumers and rng.random() < 0.3
        else v
        for v in graph.values
    )
    return msgspec.structs.replace(graph, layers=tuple(layers), values=tuple(values))


def gradients_there(graph: LayerGraph, members: Sequence[int]) -> dict[int, int]:
    """For each layer in a stage the gradient bytes that exist when its backward starts.

    Gradients from the next stage are not counted. The backward is simulated layer by layer.
    """
    found: dict[int, int] = {}
    inside = {graph.layers[at].name for at in members}
    there: dict[str, int] = {}
    larger: dict[str, int] = {}
    for at in sorted(members, reverse=True):
        name, ahead = graph.layers[at].name, {graph.layers[m].name for m in members if m <= at}
        touched = [v.name for v in graph.values if ahead.intersection((v.producer, *v.consumers))]
        result = sum(
            v.bytes
            for v in graph.values
            if v.producer == name and name in v.kept_by and v.name not in there
        )
        parts = sum(size for value, size in larger.items() if value in touched)
        found[at] = sum(there.values()) + parts + result
        for v in graph.values:
            if v.producer == name:
                there.pop(v.name, None)
                larger.pop(v.name, None)
            if name in v.consumers and v.has_gradient:
                assert v.producer not in inside or v.producer in ahead
                there[v.name] = v.bytes
                if name in v.grad_extra_by:
                    larger[v.name] = v.grad_extra_bytes
    return found


def tied_sums_made(graph: LayerGraph, members: Sequence[int], at: int) -> int:
    """Bytes of the sums that a layer's backward makes: a later layer in the stage reads the parameter too."""
    own, later = graph.layers[at].name, {graph.layers[m].name for m in members if m > at}
    return sum(
        tied.grad_bytes
        for tied in graph.tied
        if own in tied.layers and not later.isdisjoint(tied.layers)
    )


def random_problem(rng: random.Random, branching: bool, tight: bool) -> Problem:
    """A problem with at most six layers and four GPUs. With `tight`, memory binds often."""
    graph = random_graph(rng, rng.randint(1, 6), branching)
    nodes, per_node = rng.choice([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (1, 4)])
    state = sum(la.param_bytes + la.grad_bytes + 8 * la.num_trainable for la in graph.layers)
    memory = max(1, int(state * rng.uniform(0.3, 1.5)) + rng.randrange(200)) if tight else 1 << 40
    reserve_bytes = rng.randrange(8)
    inside = Link(bandwidth=rng.choice([20.0, 1000.0]), latency=rng.choice([0.0, 0.05]))
    across = Link(bandwidth=rng.choice([5.0, 100.0]), latency=rng.choice([0.0, 0.2]))
    machine = cluster(
        nodes,
        per_node,
        memory_bytes=memory,
        reserve_bytes=reserve_bytes,
        intra_node=inside,
        # A link between nodes is never the better one, as on every real cluster.
        inter_node=Link(
            bandwidth=min(inside.bandwidth, across.bandwidth),
            latency=max(inside.latency, across.latency),
        ),
        action_overhead=rng.choice([0.0, 0.1]),
        sends_overlap=rng.random() < 0.5,
    )
    return problem(
        graph,
        num_microbatches=rng.choice([4, 6, 8]),
        cluster=machine,
        training=TRAININGS[state % len(TRAININGS)],
    )


def _random_layer(rng: random.Random, name: str) -> Layer:
    params = rng.choice([0, rng.randrange(1, 40)])
    forward_time = rng.choice([0.0, 1.0, rng.uniform(0.1, 4)])
    return layer(
        name,
        forward_time=forward_time,
        input_grad_time=rng.uniform(0, 4),
        weight_grad_time=rng.uniform(0, 4),
        split_time=0.25 * forward_time if params else 0.0,
        update_time=rng.uniform(0, 0.5),
        param_bytes=4 * params,
        grad_bytes=4 * params,
        num_trainable=params,
        buffer_bytes=rng.randrange(10),
        stash_bytes=rng.randrange(30),
        workspace_bytes=rng.randrange(30),
    )


def _random_value(rng: random.Random, name: str, producer: str, consumers: list[str]) -> Value:
    keepers = [who for who in (producer, *consumers) if rng.random() < 0.4]
    return Value(
        name=name,
        producer=producer,
        consumers=tuple(consumers),
        bytes=rng.randrange(1, 30),
        has_gradient=rng.random() < 0.8,
        kept_by=tuple(keepers),
    )


def _random_tied(rng: random.Random, layers: tuple[Layer, ...]) -> tuple[TiedParameter, ...]:
    holders = [la for la in layers if la.param_bytes]
    if len(holders) < 2 or rng.random() < 0.5:
        return ()
    chosen = sorted(rng.sample(holders, rng.randint(2, len(holders))), key=layers.index)
    size = min(la.num_trainable for la in chosen)
    return (
        TiedParameter(
            name="tied",
            layers=tuple(la.name for la in chosen),
            param_bytes=4 * size,
            grad_bytes=4 * size,
            num_trainable=size,
        ),
    )
