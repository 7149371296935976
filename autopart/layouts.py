"""The layouts that a problem allows: how many stages, on which ranks, under which schedule."""

import itertools
import math
from collections.abc import Iterator, Sequence

import msgspec

from autopart.cluster import Cluster, group_of, num_gpus
from autopart.errors import InfeasibleError
from autopart.problem import CUSTOM, Demands, Problem
from autopart.schedules import KINDS, Kind, Pipeline, Placement, fitting_counts

MOST_STAGES_PER_RANK = 4
"""Where a schedule takes any number of stages a rank, and the user named none."""

StageRanks = tuple[tuple[int, ...], ...]
"""For each stage its ranks."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Every decision but the partition: how many stages, on which ranks, under which schedule."""

    schedule: str
    stage_ranks: StageRanks
    """For each stage its ranks, as many as it has replicas."""
    num_microbatches: int
    """Microbatches of a step, which the ranks of a stage run in turn."""


def own_microbatches(layout: Layout, stage: int) -> int:
    """Microbatches that the first rank of a stage runs in a step; no rank of it runs more."""
    return math.ceil(layout.num_microbatches / len(layout.stage_ranks[stage]))


def several_stages(layout: Layout) -> bool:
    """Whether a rank stands in several stages."""
    ranks = [rank for own in layout.stage_ranks for rank in own]
    return len(set(ranks)) < len(ranks)


def one_replica(layout: Layout) -> Layout:
    """The first pipeline of a layout of like replicas, its ranks numbered from 0 as they come."""
    first = [ranks[0] for ranks in layout.stage_ranks]
    names = list(dict.fromkeys(first))
    return Layout(
        schedule=layout.schedule,
        stage_ranks=tuple((names.index(rank),) for rank in first),
        num_microbatches=own_microbatches(layout, 0),
    )


def alike(layout: Layout) -> bool:
    """Whether every rank runs as many microbatches, each with the same ranks: then each replica of
    the whole pipeline does the same."""
    counts = {len(ranks) for ranks in layout.stage_ranks}
    return len(counts) == 1 and layout.num_microbatches % counts.pop() == 0


def shapes(problem: Problem) -> list[tuple[int, int]]:
    """Every (ranks of a pipeline, replicas) that the problem allows, fewest ranks first; there are
    as many stages as ranks, or a multiple where schedules with several stages a rank are allowed.

    Replicas divide the microbatches, so that each pipeline does the same work.
    Raises InfeasibleError where the demands leave none, or where some GPU must stay idle.
    """
    layers, gpus = len(problem.graph.layers), num_gpus(problem.cluster)
    demands = problem.demands
    if any(kind.stages_per_rank != 1 for kind in _kinds(demands)):
        return _folded_shapes(problem, layers, gpus)
    if demands.num_stages is not None and demands.num_stages > min(layers, gpus):
        limit = f"the model has {layers} layers" if layers < gpus else f"there are {gpus} GPUs"
        raise InfeasibleError(
            f"{demands.num_stages} stages cannot be made: {limit}; "
            f"ask for at most {min(layers, gpus)} stages"
        )
    if gpus > layers * problem.num_microbatches:
        raise InfeasibleError(
            f"{gpus} GPUs cannot be used: {layers} layers and {problem.num_microbatches} "
            f"microbatches employ at most {layers * problem.num_microbatches}; "
            "take fewer GPUs or a larger --global-batch"
        )
    allowed = [
        (k, r)
        for k in range(1, min(layers, gpus) + 1)
        for r in range(1, gpus // k + 1)
        if problem.num_microbatches % r == 0
        and demands.num_stages in (None, k)
        and demands.num_replicas in (None, r)
    ]
    if not allowed:
        raise InfeasibleError(
            f"no way to make {demands.num_replicas} replicas: they must divide the "
            f"{problem.num_microbatches} microbatches, and {demands.num_stages or 1} stages "
            f"of each must fit on {gpus} GPUs"
        )
    return allowed


def _folded_shapes(problem: Problem, layers: int, gpus: int) -> list[tuple[int, int]]:
    """`shapes` where a rank may have several stages."""
    allowed = [
        (n, r)
        for n in range(1, min(layers, gpus) + 1)
        for r in range(1, gpus // n + 1)
        if problem.num_microbatches % r == 0
        and problem.demands.num_replicas in (None, r)
        and _pipelines(problem, n, r)
    ]
    if not allowed:
        asked = ", ".join(problem.demands.schedules)
        raise InfeasibleError(
            f"no layout of {layers} layers on {gpus} GPUs with {problem.num_microbatches} microbatches "
            f"suits the schedules {asked} with the stages and replicas asked for; drop one of these"
            + "".join(_counts_that_would_do(problem, layers, gpus))
        )
    return allowed


def _counts_that_would_do(problem: Problem, layers: int, gpus: int) -> Iterator[str]:
    """Of each schedule that the microbatches of one pipeline do not suit, the numbers near them that do."""
    for kind in _kinds(problem.demands):
        for v in _stages_per_rank(kind, problem.demands, 2)[:1]:
            ranks = (problem.demands.num_stages or min(layers, gpus * v)) // v
            wanted = Pipeline(ranks, v, problem.num_microbatches)
            if ranks > 1 and not kind.takes(wanted):
                will = fitting_counts(kind, ranks, v, problem.num_microbatches)
                counts = " or ".join(map(str, will)) or "no number"
                yield (f"; {kind.name} on {ranks} ranks takes {kind.rule}: {counts} would do")


def layouts(problem: Problem, num_ranks: int, num_replicas: int) -> list[Layout]:
    """The layouts of one shape: each schedule, with the replicas of a stage side by side (the
    pipeline crosses the nodes) and with each pipeline side by side (the gradient syncs cross).
    1F1B comes before GPipe: where both are as fast, it holds less. Where GPUs differ, only the former,
    from each rank on."""
    n, r = num_ranks, num_replicas
    side_by_side = _side_by_side((r,) * n)
    if problem.cluster.gpus:
        grids = _shifted(problem.cluster, side_by_side)
    else:
        grids = [side_by_side, tuple(tuple(range(p, n * r, n)) for p in range(n))]
    pipelines = _pipelines(problem, n, r)
    return [
        Layout(
            schedule=name,
            stage_ranks=tuple(grid[place] for place in placement),
            num_microbatches=problem.num_microbatches,
        )
        for grid in _differing(problem.cluster, grids)
        for name, placement in pipelines
    ]


def _kinds(demands: Demands) -> list[Kind]:
    return [KINDS[name] for name in demands.schedules if name != CUSTOM]


def _pipelines(problem: Problem, num_ranks: int, replicas: int) -> list[tuple[str, Placement]]:
    """The schedules that a pipeline can follow, each with the place of every stage on its ranks;
    where orders of its own are allowed, they come last, once for each placement."""
    demands = problem.demands
    microbatches = problem.num_microbatches // replicas
    found: list[tuple[str, Placement]] = []
    for kind in sorted(_kinds(demands), key=lambda kind: kind.name):
        for v in _stages_per_rank(kind, demands, num_ranks):
            stages = num_ranks * v
            if stages > len(problem.graph.layers) or demands.num_stages not in (None, stages):
                continue
            if kind.takes(Pipeline(num_ranks, v, microbatches)):
                found.append((kind.name, kind.placement(num_ranks, v)))
    if CUSTOM in demands.schedules:
        found += [(CUSTOM, placement) for placement in dict.fromkeys(p for _, p in found)]
    return found


def _stages_per_rank(kind: Kind, demands: Demands, num_ranks: int) -> Sequence[int]:
    """How many stages a rank may have; alone, a rank gains nothing by more than one."""
    fixed, asked = kind.stages_per_rank, demands.stages_per_rank
    if fixed is not None:
        able = [fixed] if fixed == 1 or num_ranks > 1 else []
    else:
        able = list(range(2, (asked or MOST_STAGES_PER_RANK) + 1)) if num_ranks > 1 else []
    return [v for v in able if asked in (None, v)]


def layouts_of(problem: Problem, counts: Sequence[int]) -> list[Layout]:
    """The layouts of stages with `counts` replicas, which the cluster has room for: those of a shape
    where all have as many, and beside the ranks in their order each stage within a node where there
    is room in one, and each stage spread evenly over all nodes, so that only syncs cross."""
    cluster, side_by_side = problem.cluster, _side_by_side(counts)
    if cluster.gpus:
        return _laid_out(problem, _shifted(cluster, side_by_side))
    places = [side_by_side, _within_nodes(cluster, counts)]
    if all(count % cluster.num_nodes == 0 for count in counts):
        places.append(_over_nodes(cluster, counts))
    if len(set(counts)) == 1:
        k, r = len(counts), counts[0]
        places.append(tuple(tuple(range(s, k * r, k)) for s in range(k)))
    return _laid_out(problem, places)


def _laid_out(problem: Problem, places: Sequence[StageRanks]) -> list[Layout]:
    """Each schedule on each of `places` that costs differ on."""
    return [
        Layout(schedule=name, stage_ranks=place, num_microbatches=problem.num_microbatches)
        for place in _differing(problem.cluster, places)
        for name in sorted(problem.demands.schedules)
    ]


def _differing(cluster: Cluster, places: Sequence[StageRanks]) -> list[StageRanks]:
    """Those of `places` that costs differ on."""
    differing = {_what_costs(cluster, place): place for place in reversed(places)}
    return list(reversed(differing.values()))


def _what_costs(cluster: Cluster, place: StageRanks) -> tuple[object, ...]:
    """The nodes and the GPUs of the ranks, with nodes numbered as they come."""
    names: dict[int, int] = {}
    return tuple(
        tuple(
            (
                names.setdefault(rank // cluster.gpus_per_node, len(names)),
                group_of(cluster, rank),
            )
            for rank in ranks
        )
        for ranks in place
    )


def _side_by_side(counts: Sequence[int]) -> StageRanks:
    ends = list(itertools.accumulate(counts))
    return tuple(tuple(range(end - r, end)) for end, r in zip(ends, counts, strict=True))


def _shifted(cluster: Cluster, place: StageRanks) -> list[StageRanks]:
    used = sum(map(len, place))
    return [
        tuple(tuple(rank + by for rank in ranks) for ranks in place)
        for by in range(num_gpus(cluster) - used + 1)
    ]


def _within_nodes(cluster: Cluster, counts: Sequence[int]) -> StageRanks:
    """Each stage, the largest first, on the first node with room for all of it, else on what is left."""
    free = [list(ranks) for ranks in _node_ranks(cluster)]
    place: list[tuple[int, ...]] = [()] * len(counts)
    for stage in sorted(range(len(counts)), key=lambda s: -counts[s]):
        count = counts[stage]
        room = next((own for own in free if len(own) >= count), None)
        chosen = (room or list(itertools.chain(*free)))[:count]
        free = [[rank for rank in own if rank not in chosen] for own in free]
        place[stage] = tuple(chosen)
    return tuple(place)


def _over_nodes(cluster: Cluster, counts: Sequence[int]) -> StageRanks:
    """Rank i of each stage on node i mod nodes: microbatch m then stays on node m mod nodes."""
    free = [iter(ranks) for ranks in _node_ranks(cluster)]
    return tuple(tuple(next(free[i % len(free)]) for i in range(count)) for count in counts)


def _node_ranks(cluster: Cluster) -> list[range]:
    size = cluster.gpus_per_node
    return [range(node * size, node * size + size) for node in range(cluster.num_nodes)]
