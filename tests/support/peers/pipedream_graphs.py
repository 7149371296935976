"""Small graphs for PipeDream, and every plan for them."""

import itertools
import random
from collections.abc import Iterator

from autopart.peers.pipedream.charges import Network, NetworkStage
from autopart.records.layer_graph import Layer, LayerGraph, Value


def net(compute: dict[str, float], edges: dict[str, str], **more: dict[str, int]) -> LayerGraph:
    """A graph from layers with forward times in seconds, and the readers of each layer's output.

    `bytes` and `params` replace the defaults: 8 bytes of output and no parameters.
    """
    sizes, params = more.get("bytes", {}), more.get("params", {})
    layers = tuple(
        Layer(
            name=name,
            kind="Linear",
            forward_time=time,
            input_grad_time=0.0,
            weight_grad_time=0.0,
            param_bytes=params.get(name, 0),
            stash_bytes=0 if name in edges else sizes.get(name, 8),
        )
        for name, time in compute.items()
    )
    values = tuple(
        Value(
            name=f"{name}.out",
            producer=name,
            consumers=tuple(readers),
            bytes=sizes.get(name, 8),
            has_gradient=True,
        )
        for name, readers in edges.items()
    )
    return LayerGraph(layers=layers, values=values)


def random_graph(rng: random.Random, most_layers: int, density: float) -> LayerGraph:
    """A graph with ties, zero times, heavy layers, and several sources or sinks."""
    size = rng.randint(1, most_layers)
    names = [f"n{i}" for i in range(size)]
    edges = {
        u: readers
        for i, u in enumerate(names)
        if (readers := [v for v in names[i + 1 :] if rng.random() < density])
    }
    compute = {v: rng.choice([0.0, 1.0, 1.0, rng.uniform(0.1, 3), 8.0]) for v in names}
    sizes = {v: rng.choice([0, 1, rng.randrange(1, 30), 100]) for v in names}
    params = {v: rng.choice([0, 0, rng.randrange(1, 40)]) for v in names}
    return net(compute, edges, bytes=sizes, params=params)  # type: ignore[arg-type]


def random_network(rng: random.Random, *machines: int, memory: bool) -> Network:
    """Bandwidths at which transfers and syncs matter in some places."""
    return Network(
        machines=machines,
        bandwidths=tuple(rng.choice([2.0, 10.0, 40.0, 1000.0]) for _ in machines),
        straight=rng.random() < 0.3,
        compression=rng.choice([None, 1.0, 1.0, 2.5]),
        memory_bytes=rng.choice([10.0, 40.0, 120.0, 300.0]) if memory else None,
    )


def downsets(graph: LayerGraph) -> list[frozenset[int]]:
    """Every set of layers that holds everything its layers read."""
    place = {layer.name: at for at, layer in enumerate(graph.layers)}
    needs = [set[int]() for _ in graph.layers]
    for value in graph.values:
        for reader in value.consumers:
            needs[place[reader]].add(place[value.producer])
    sets = itertools.product((False, True), repeat=len(needs))
    members = ({v for v, has in enumerate(has_it) if has} for has_it in sets)
    return [frozenset(m) for m in members if all(needs[v] <= m for v in m)]


def pipelines(
    sets: list[frozenset[int]],
    start: frozenset[int],
    end: frozenset[int],
    machines: int,
    straight: bool,
) -> Iterator[tuple[NetworkStage, ...]]:
    """Every sequence of stages from `start` to `end` with replicas, on at most `machines`."""
    if start == end:
        yield ()
        return
    for nearer in sets:
        if start < nearer <= end:
            for replicas in range(1, (1 if straight else machines) + 1):
                if replicas <= machines:
                    layers = tuple(sorted(nearer - start))
                    for rest in pipelines(sets, nearer, end, machines - replicas, straight):
                        yield (NetworkStage(layers, replicas), *rest)


def fits(graph: LayerGraph, memory: float | None, parts: tuple[NetworkStage, ...]) -> bool:
    """PipeDream's memory constraint, on one level."""
    if memory is None:
        return True
    made: dict[str, int] = {}
    for value in graph.values:
        made[value.producer] = made.get(value.producer, 0) + value.bytes
    kept = [la.param_bytes + made.get(la.name, la.stash_bytes) for la in graph.layers]
    later = 0
    for part in reversed(parts):
        if -(-later // part.replicas) * sum(kept[v] for v in part.layers) > memory:
            return False
        later += part.replicas
    return True


def plans(graph: LayerGraph, network: Network) -> Iterator[tuple[NetworkStage, ...]]:
    """Every plan that fits into memory."""
    sets = downsets(graph)
    whole = frozenset(range(len(graph.layers)))
    memory, straight = network.memory_bytes, network.straight
    outer = pipelines(sets, frozenset(), whole, network.machines[-1], straight)
    for parts in outer:
        if not fits(graph, memory, parts):
            continue
        if len(network.machines) == 1:
            yield parts
            continue
        choices: list[list[tuple[NetworkStage, ...]]] = []
        ahead: frozenset[int] = frozenset()
        for part in parts:
            until = ahead | frozenset(part.layers)
            inner = pipelines(sets, ahead, until, network.machines[0], straight)
            choices.append([stages for stages in inner if fits(graph, memory, stages)])
            ahead = until
        for pipelines_of_all in itertools.product(*choices):
            yield tuple(
                p._replace(inner=stages) for p, stages in zip(parts, pipelines_of_all, strict=True)
            )
