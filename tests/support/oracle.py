"""Trying everything: the slow and obviously right answer to a small problem."""

import itertools
from collections.abc import Iterator

import msgspec

from autopart.pricing import fits, price
from autopart.records.cluster import num_gpus
from autopart.records.layer_graph import edges
from autopart.records.layouts import Layout, Partition, layouts, layouts_of, shapes
from autopart.records.problem import Problem


def partitions(problem: Problem, num_stages: int) -> Iterator[Partition]:
    """Every partition into `num_stages` non-empty stages whose edges all go forward."""
    pairs = edges(problem.graph)
    for homes in itertools.product(range(num_stages), repeat=len(problem.graph.layers)):
        if len(set(homes)) == num_stages and all(homes[u] <= homes[w] for u, w in pairs):
            yield tuple(
                tuple(at for at, home in enumerate(homes) if home == stage)
                for stage in range(num_stages)
            )


def step_time(problem: Problem, layout: Layout, partition: Partition) -> float | None:
    """Simulated seconds of a step; None if it does not fit."""
    decision = price(problem, layout, partition)
    return decision.prediction.step_time if fits(problem, decision) else None


def best_step_time(problem: Problem) -> float | None:
    """The shortest simulated step over all plans; None if nothing fits."""
    times = [
        time
        for layout in every_layout(problem)
        for partition in partitions(problem, layout_stages(layout))
        if (time := step_time(problem, layout, partition)) is not None
    ]
    return min(times, default=None)


def every_layout(problem: Problem) -> Iterator[Layout]:
    """All layouts, with every number of replicas that the problem allows, on every GPU."""
    for layout in _on_some_ranks(problem):
        yield from on_every_rank(problem, layout)


def _on_some_ranks(problem: Problem) -> Iterator[Layout]:
    if not problem.demands.replicas_per_stage:
        yield from itertools.chain(*(layouts(problem, *shape) for shape in shapes(problem)))
        return
    gpus, most = num_gpus(problem.cluster), problem.num_microbatches
    demanded = problem.demands.num_stages
    for k in [demanded] if demanded else range(1, min(gpus, len(problem.graph.layers)) + 1):
        for counts in itertools.product(range(1, min(gpus, most) + 1), repeat=k):
            if sum(counts) <= gpus:
                yield from layouts_of(problem, counts)


def on_every_rank(problem: Problem, layout: Layout) -> Iterator[Layout]:
    """A layout on every assignment of its ranks to GPUs, each once up to equal nodes.

    Where GPUs and replicas differ, the layout alone.
    """
    cluster = problem.cluster
    if cluster.gpus and problem.demands.replicas_per_stage:
        yield layout
        return
    ranks = list(dict.fromkeys(rank for own in layout.stage_ranks for rank in own))
    if cluster.gpus:
        yield from _on_every_gpu(problem, layout, ranks)
        return
    for nodes in itertools.product(range(cluster.num_nodes), repeat=len(ranks)):
        # Nodes are alike: a later node is used only where all earlier ones are.
        first_uses = list(dict.fromkeys(nodes))
        if first_uses != sorted(first_uses) or first_uses[-1] != len(first_uses) - 1:
            continue
        if max(nodes.count(node) for node in first_uses) > cluster.gpus_per_node:
            continue
        place = {
            rank: node * cluster.gpus_per_node + nodes[:at].count(node)
            for at, (rank, node) in enumerate(zip(ranks, nodes, strict=True))
        }
        moved = tuple(tuple(place[rank] for rank in own) for own in layout.stage_ranks)
        yield msgspec.structs.replace(layout, stage_ranks=moved)


def _on_every_gpu(problem: Problem, layout: Layout, ranks: list[int]) -> Iterator[Layout]:
    """A layout on every choice of different GPUs for its ranks, each kind of choice once."""
    cluster, seen = problem.cluster, set[object]()
    kinds = [group for group in cluster.gpus for _ in range(group.count)]
    for chosen in itertools.permutations(range(num_gpus(cluster)), len(ranks)):
        nodes = [gpu // cluster.gpus_per_node for gpu in chosen]
        kind = tuple(nodes), tuple((kinds[gpu].speed, kinds[gpu].memory_bytes) for gpu in chosen)
        if kind not in seen:
            seen.add(kind)
            place = dict(zip(ranks, chosen, strict=True))
            moved = tuple(tuple(place[rank] for rank in own) for own in layout.stage_ranks)
            yield msgspec.structs.replace(layout, stage_ranks=moved)


def layout_stages(layout: Layout) -> int:
    """The number of stages of a layout."""
    return len(layout.stage_ranks)
