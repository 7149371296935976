"""Small dnn-partitioning instances, and the slow and obviously right answers to them.

Everything here follows the published description alone. Only the records come from
autopart/peers/dnn_partitioning/charges.py, so that each can be checked against the other.
"""

import itertools
import random
from collections.abc import Iterator, Mapping

import networkx as nx

from autopart.peers.dnn_partitioning.charges import DeviceStage, DnnEdge, DnnInstance, DnnNode


def node(name: int, latency: float = 1.0, **fields: object) -> DnnNode:
    """A forward node that takes ten times as long on a CPU, unless `fields` say otherwise."""
    base: dict[str, object] = {
        "name": f"n{name}",
        "accelerator_latency": latency,
        "cpu_latency": 10 * latency,
        "size": 1.0,
        "color": None,
        "on_accelerator": True,
        "backward": False,
    }
    return DnnNode(id=name, **(base | fields))  # type: ignore[arg-type]


def instance(
    nodes: list[DnnNode],
    edges: dict[tuple[int, int], float],
    accelerators: int = 2,
    cpus: int = 0,
    size_limit: float = 1e9,
) -> DnnInstance:
    """An instance from edges and their costs; all edges out of a node must cost the same."""
    costs: dict[int, float] = {}
    for (source, _), cost in edges.items():
        assert costs.setdefault(source, cost) == cost
    return DnnInstance(
        nodes=tuple(nodes),
        edges=tuple(DnnEdge(*ends) for ends in edges),
        costs=costs,
        num_accelerators=accelerators,
        num_cpus=cpus,
        size_limit=size_limit,
    )


MOST_SPLITS = 2_000


def random_instance(rng: random.Random, most_groups: int = 5) -> DnnInstance:
    """A random instance, small enough that all its splits can be tried.

    It may have colours, orphans, circles of colours, idle nodes, and nodes that need a CPU. Memory
    may bind. There may be ties, and none or several devices per kind.
    """
    while True:
        drawn = _random_instance(rng, most_groups)
        devices = drawn.num_accelerators + drawn.num_cpus
        if devices ** len(groups_of(drawn)) <= MOST_SPLITS:
            return drawn


def _random_instance(rng: random.Random, most_groups: int) -> DnnInstance:
    count, training, whole = rng.randint(1, most_groups), rng.random() < 0.5, rng.random() < 0.5

    def amount(most: float) -> float:
        return float(rng.randint(0, 4)) if whole else rng.uniform(0, most)

    def make(name: int, color: int | None, backward: bool) -> DnnNode:
        latency = 0.0 if rng.random() < 0.25 else amount(4)
        return node(
            name,
            latency,
            cpu_latency=latency * rng.choice((2, 10)),
            size=float(rng.randint(0, 5)),
            color=color,
            on_accelerator=rng.random() > 0.05,
            backward=backward,
        )

    names = rng.sample(range(100), 2 * count)
    forward = names[:count]
    color = {n: rng.randint(0, 2) if rng.random() < 0.3 else 100 + n for n in forward}
    nodes = [make(n, color[n] if rng.random() < 0.9 else None, False) for n in forward]
    chance = rng.uniform(0.1, 0.6)
    ends = [pair for pair in itertools.combinations(forward, 2) if rng.random() < chance]
    if training:
        twins = {
            n: twin for n, twin in zip(forward, names[count:], strict=True) if rng.random() < 0.8
        }
        for n, twin in twins.items():
            shared = color[n] if rng.random() < 0.7 else rng.choice((None, 200, 201))
            nodes.append(make(twin, shared, True))
            ends += [(u, twin) for u in forward if rng.random() < 0.15]
        for u, v in itertools.combinations(reversed(twins), 2):
            if rng.random() < chance:
                ends.append((twins[u], twins[v]))
    cost = {u: 0.0 if rng.random() < 0.2 else amount(2) for u in names}
    rng.shuffle(nodes)
    accelerators, cpus = rng.randint(0, 3), rng.randint(0, 2)
    total = sum(n.size for n in nodes)
    limit = rng.choice((1e9, total, total * rng.uniform(0.2, 0.9)))
    edges = {pair: cost[pair[0]] for pair in dict.fromkeys(ends)}
    return instance(nodes, edges, accelerators or 1 - min(cpus, 1), cpus, limit)


def groups_of(problem: DnnInstance) -> list[list[DnnNode]]:
    """Nodes that must share a device."""
    groups: dict[object, list[DnnNode]] = {}
    for n in problem.nodes:
        groups.setdefault(("alone", n.id) if n.color is None else n.color, []).append(n)
    return list(groups.values())


def splits(problem: DnnInstance, *, contiguous: bool) -> Iterator[tuple[float, dict[int, int]]]:
    """For every allowed split its largest charge, and the device of each node."""
    groups = groups_of(problem)
    devices = problem.num_accelerators + problem.num_cpus
    for choice in itertools.product(range(devices), repeat=len(groups)):
        home = {n.id: at for group, at in zip(groups, choice, strict=True) for n in group}
        if _fits(problem, home) and (not contiguous or _in_order(problem, groups, home)):
            yield max(_charge(problem, home, at) for at in range(devices)), home


def smallest_largest_charge(problem: DnnInstance, *, contiguous: bool) -> float | None:
    """The smallest largest charge; None where nothing fits."""
    return min((charge for charge, _ in splits(problem, contiguous=contiguous)), default=None)


def _charge(problem: DnnInstance, home: Mapping[int, int], device: int) -> float:
    mine = [n for n in problem.nodes if home[n.id] == device]
    if device >= problem.num_accelerators:
        return sum(n.cpu_latency for n in mine)
    charge = sum(n.accelerator_latency for n in mine)
    for n in problem.nodes:
        readers = [target for source, target in problem.edges if source == n.id]
        if home[n.id] == device and any(home[r] != device for r in readers):
            charge += problem.costs[n.id]
        if home[n.id] != device and any(home[r] == device for r in readers):
            charge += problem.costs[n.id]
    return charge


def _fits(problem: DnnInstance, home: Mapping[int, int]) -> bool:
    for device in range(problem.num_accelerators):
        mine = [n for n in problem.nodes if home[n.id] == device]
        if sum(n.size for n in mine) > problem.size_limit or not all(
            n.on_accelerator for n in mine
        ):
            return False
    return True


def _in_order(problem: DnnInstance, groups: list[list[DnnNode]], home: Mapping[int, int]) -> bool:
    """Whether the devices have an order where no counted edge goes backward."""
    node_of = {n.id: n for n in problem.nodes}
    orphans = {n.id for group in groups if all(n.backward for n in group) for n in group}
    graph: nx.DiGraph = nx.DiGraph()
    for u, v in problem.edges:
        if not node_of[u].backward and not node_of[v].backward:
            graph.add_edge(home[u], home[v])
        elif node_of[u].backward and node_of[v].backward and {u, v} & orphans:
            graph.add_edge(home[v], home[u])
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    return nx.is_directed_acyclic_graph(graph)


def as_document(problem: DnnInstance) -> dict[str, object]:
    """The instance as its file."""
    return {
        "maxSizePerFPGA": problem.size_limit,
        "maxFPGAs": problem.num_accelerators,
        "maxCPUs": problem.num_cpus,
        "nodes": [
            {
                "id": n.id,
                "name": n.name,
                "fpgaLatency": n.accelerator_latency,
                "cpuLatency": n.cpu_latency,
                "supportedOnFpga": n.on_accelerator,
                "isBackwardNode": int(n.backward),
                "size": n.size,
            }
            | ({} if n.color is None else {"colorClass": n.color})
            for n in problem.nodes
        ],
        "edges": [{"sourceId": u, "destId": v, "cost": problem.costs[u]} for u, v in problem.edges],
    }


def stage(kind: str, *nodes: int) -> DeviceStage:
    """A stage from node ids."""
    return DeviceStage(kind, tuple(nodes))  # type: ignore[arg-type]
