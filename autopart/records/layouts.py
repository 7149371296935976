"""The layouts that a problem allows: stages, their ranks, and the schedule."""

import itertools
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from autopart.errors import InfeasibleError
from autopart.records.both_ways import both_ways_would_do
from autopart.records.cluster import Cluster, group_of, num_gpus
from autopart.records.group_choice import GroupDemand
from autopart.records.lending import lending_would_do
from autopart.records.problem import BIDIRECTIONAL, CUSTOM, LENDING, Demands, Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.catalogue import KINDS, fitting_counts
from autopart.schedules.kind import Kind, replicas_together
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import Placement, mirrored, wave
from autopart.text import counted

MOST_STAGES_PER_RANK = 4
"""The largest number tried where a schedule takes any stages per rank, and the user named none."""

Partition = tuple[tuple[int, ...], ...]
"""For each stage the positions that its layers have in the graph's order."""

StageRanks = tuple[tuple[int, ...], ...]
"""For each stage its ranks, one per replica."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """All decisions except the partition: stages, their ranks, and the schedule."""

    schedule: str
    """Schedule name, or "custom"."""
    stage_ranks: StageRanks
    """For each stage its ranks, one per replica."""
    num_microbatches: int
    """Microbatches per step, over all replicas. A stage's ranks run them in turn."""


def own_microbatches(layout: Layout, stage: int) -> int:
    """Microbatches per step on a stage's first rank; no other replica runs more."""
    return microbatches_per_replica(layout.num_microbatches, len(layout.stage_ranks[stage]))


def has_virtual_stages(layout: Layout) -> bool:
    """Whether some rank has several stages."""
    different = set[int]().union(*layout.stage_ranks)
    return len(different) < sum(map(len, layout.stage_ranks))


def pipelines_together(schedule: str) -> int:
    """The pipelines that share their ranks: 2 where a schedule is bidirectional, else 1."""
    return replicas_together(KINDS[schedule]) if schedule in KINDS else 1


def one_replica(layout: Layout) -> Layout:
    """The first pipeline in a layout with equal replicas, its ranks renumbered from 0.

    Where pipelines share their ranks, the first two of them.
    """
    together = pipelines_together(layout.schedule)
    names = list(dict.fromkeys(ranks[0] for ranks in layout.stage_ranks))
    return Layout(
        schedule=layout.schedule,
        stage_ranks=tuple(
            tuple(map(names.index, ranks[:together])) for ranks in layout.stage_ranks
        ),
        num_microbatches=together * own_microbatches(layout, 0),
    )


def replicas_alike(layout: Layout) -> bool:
    """Whether all replicas do the same work.

    They do where each stage has equally many ranks, and each rank equally many microbatches.
    """
    counts = {len(ranks) for ranks in layout.stage_ranks}
    return len(counts) == 1 and layout.num_microbatches % counts.pop() == 0


def shapes(problem: Problem) -> list[tuple[int, int]]:
    """Every (ranks per pipeline, replicas) that the problem allows, fewest ranks first.

    There are as many stages as ranks per pipeline, or a multiple with virtual stages. Replicas divide
    the microbatches, so that each pipeline does the same work. Where two pipelines share their ranks,
    stages s and k - 1 - s have the same ranks. They count as one rank with two stages.
    GPUs may stay idle. Raises InfeasibleError where the demands leave no shape.
    """
    layers, gpus = len(problem.graph.layers), num_gpus(problem.cluster)
    demands = problem.demands
    several = demands.stages_per_rank not in (None, 1)
    if several or any(
        k.stages_per_rank != 1 or k.bidirectional or k.lends for k in _kinds(demands)
    ):
        return _shapes_of_virtual_stages(problem, layers, gpus)
    check_num_stages(problem)
    allowed = [
        (k, r)
        for k in range(1, min(layers, gpus) + 1)
        for r in range(1, min(gpus // k, problem.num_microbatches) + 1)
        if problem.num_microbatches % r == 0
        and demands.num_stages in (None, k)
        and demands.num_replicas in (None, r)
    ]
    if not allowed:
        raise InfeasibleError(
            f"{counted(demands.num_replicas or 1, 'replica')} cannot be made: they must divide the "
            f"{counted(problem.num_microbatches, 'microbatch')}, and {counted(demands.num_stages or 1, 'stage')} "
            f"for each must have room on {_ranks_in_words(problem)}"
        )
    return allowed


def _ranks_in_words(problem: Problem) -> str:
    """The ranks of a problem, which are GPUs where no rank group is asked for."""
    are_groups = isinstance(problem.demands.group, GroupDemand)
    return counted(num_gpus(problem.cluster), "rank group" if are_groups else "GPU")


def check_num_stages(problem: Problem) -> None:
    """Raise InfeasibleError where more stages are demanded than there are layers or GPUs."""
    layers, gpus = len(problem.graph.layers), num_gpus(problem.cluster)
    demanded = problem.demands.num_stages
    if demanded is not None and demanded > min(layers, gpus):
        limit = (
            f"the model has {counted(layers, 'layer')}"
            if layers < gpus
            else f"the cluster has {_ranks_in_words(problem)}"
        )
        error = InfeasibleError(
            f"{counted(demanded, 'stage')} cannot be made: {limit}; ask for at most {counted(min(layers, gpus), 'stage')}"
        )
        error.too_few_layers = layers < gpus
        raise error


def _shapes_of_virtual_stages(problem: Problem, layers: int, gpus: int) -> list[tuple[int, int]]:
    """`shapes` with virtual stages."""
    allowed = [
        (n, r)
        for n in range(1, min(layers, gpus) + 1)
        for r in range(1, min(gpus // n, problem.num_microbatches) + 1)
        if problem.num_microbatches % r == 0
        and problem.demands.num_replicas in (None, r)
        and _pipelines(problem, n, r)
    ]
    if not allowed:
        asked = ", ".join(problem.demands.schedules)
        if set(problem.demands.schedules) <= set(BIDIRECTIONAL):
            raise InfeasibleError(f"{asked} {both_ways_would_do(problem, layers, gpus)}")
        if set(problem.demands.schedules) <= set(LENDING):
            raise InfeasibleError(f"{asked} {lending_would_do(problem, layers, gpus)}")
        raise InfeasibleError(
            f"no layout for {counted(layers, 'layer')} on {counted(gpus, 'GPU')} with {counted(problem.num_microbatches, 'microbatch')} "
            f"suits the schedules {asked} with the stages, replicas and stages per rank asked for; "
            "drop one of these" + "".join(_counts_that_would_do(problem, layers, gpus))
        )
    return allowed


def _counts_that_would_do(problem: Problem, layers: int, gpus: int) -> Iterator[str]:
    """For each schedule that rejects the number of microbatches, the nearest numbers that it takes."""
    for kind in _kinds(problem.demands):
        if kind.bidirectional:
            yield f"; {kind.name} {both_ways_would_do(problem, layers, gpus)}"
            continue
        if kind.lends:
            yield f"; {kind.name} {lending_would_do(problem, layers, gpus)}"
            continue
        for v in _stages_per_rank(kind, problem.demands, 2)[:1]:
            ranks = (problem.demands.num_stages or min(layers, gpus * v)) // v
            wanted = Pipeline(ranks, v, problem.num_microbatches)
            if ranks > 1 and not kind.takes(wanted):
                will = fitting_counts(kind, ranks, v, problem.num_microbatches)
                counts = " or ".join(map(str, will)) or "no number"
                yield (
                    f"; {kind.name} on {counted(ranks, 'rank')} takes {kind.rule}: {counts} would do"
                )


def layouts(problem: Problem, num_ranks: int, num_replicas: int) -> list[Layout]:
    """The layouts with one shape, for each schedule.

    Consecutive ranks from 0 run each stage. They stand for any others
    (autopart/bounds/rank_assignments.py). 1F1B comes before GPipe: where both are equally fast, it
    needs less memory.
    """
    grid = side_by_side((num_replicas,) * num_ranks)
    both_ways = side_by_side((num_replicas // 2,) * 2 * num_ranks)
    return [
        Layout(
            schedule=name,
            stage_ranks=tuple(grid[place] for place in placement)
            if pipelines_together(name) == 1
            else mirrored(list(zip(*both_ways, strict=True))),
            num_microbatches=problem.num_microbatches,
        )
        for name, placement in _pipelines(problem, num_ranks, num_replicas)
    ]


def _kinds(demands: Demands) -> list[Kind]:
    """The named schedules that the demands allow."""
    return [KINDS[name] for name in demands.schedules if name != CUSTOM]


def _pipelines(problem: Problem, num_ranks: int, replicas: int) -> list[tuple[str, Placement]]:
    """The schedules that one pipeline can follow, each with its placement (the ranks by stage).

    Custom orders come last, once for each placement, where they are allowed. Where two pipelines
    share their ranks, the placement counts the ranks of stages s and k - 1 - s as one.
    """
    demands = problem.demands
    microbatches = microbatches_per_replica(problem.num_microbatches, replicas)
    found: list[tuple[str, Placement]] = []
    for kind in sorted(_kinds(demands), key=lambda kind: kind.name):
        for v in _stages_per_rank(kind, demands, num_ranks):
            stages = num_ranks * v
            if stages > len(problem.graph.layers) or demands.num_stages not in (None, stages):
                continue
            if kind.bidirectional:
                both = Pipeline(2 * num_ranks, 1, 2 * microbatches)
                if replicas % 2 == 0 and kind.takes(both):
                    found.append((kind.name, wave(num_ranks, v)))
            elif kind.takes(Pipeline(num_ranks, v, microbatches)):
                found.append((kind.name, kind.placement(num_ranks, v)))
    if CUSTOM in demands.schedules:
        apart = [own for name, own in found if pipelines_together(name) == 1]
        found += [(CUSTOM, placement) for placement in dict.fromkeys(apart)]
    return found


def _stages_per_rank(kind: Kind, demands: Demands, num_ranks: int) -> Sequence[int]:
    """The stages per rank that a schedule allows; a single rank gains nothing from more than one."""
    fixed, asked = kind.stages_per_rank, demands.stages_per_rank
    if kind.bidirectional:
        able = [2]  # One stage in each direction.
    elif fixed is not None:
        able = [fixed] if fixed == 1 or num_ranks > 1 else []
    else:
        able = list(range(2, (asked or MOST_STAGES_PER_RANK) + 1)) if num_ranks > 1 else []
    return [v for v in able if asked in (None, v)]


def layouts_of(problem: Problem, counts: Sequence[int]) -> list[Layout]:
    """The layouts whose stages have `counts` replicas, for each schedule; they must have room.

    Their ranks are those of `layouts`. Where GPUs differ, they start at each rank.
    """
    return [
        Layout(schedule=name, stage_ranks=place, num_microbatches=problem.num_microbatches)
        for place in windows(problem.cluster, counts)
        for name in sorted(problem.demands.schedules)
    ]


def windows(cluster: Cluster, counts: Sequence[int]) -> list[StageRanks]:
    """Consecutive ranks for each stage: from rank 0, or from each rank where GPUs differ.

    Of placements that cost the same, the first one is listed.
    """
    place = side_by_side(counts)
    if not cluster.gpus:
        return [place]
    shifted = [
        tuple(tuple(rank + by for rank in ranks) for ranks in place)
        for by in range(num_gpus(cluster) - sum(counts) + 1)
    ]
    differing: dict[object, StageRanks] = {}
    for one in shifted:
        differing.setdefault(nodes_and_gpus(cluster, one), one)
    return list(differing.values())


def side_by_side(counts: Sequence[int]) -> StageRanks:
    """Consecutive ranks for each stage, from rank 0."""
    ends = list(itertools.accumulate(counts))
    return tuple(tuple(range(end - r, end)) for end, r in zip(ends, counts, strict=True))


def nodes_and_gpus(cluster: Cluster, place: StageRanks) -> tuple[object, ...]:
    """Node, rail and GPU group for each rank, with nodes numbered in the order of their appearance.

    Nodes are alike, so two placements with equal answers cost the same. Rails count where a send
    off its rail is slower.
    """
    ranks = np.fromiter(itertools.chain.from_iterable(place), dtype=np.int64)
    nodes = ranks // cluster.gpus_per_node
    _, first, names = np.unique(nodes, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))[names]
    groups = [group_of(cluster, rank) for rank in ranks.tolist()] if cluster.gpus else []
    network = cluster.network
    apart = network is not None and network.off_rail < 1.0
    rails = (ranks % cluster.gpus_per_node).tobytes() if apart else b""
    return tuple(map(len, place)), in_order.tobytes(), tuple(groups), rails
