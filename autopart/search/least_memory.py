"""The least memory per GPU with which some plan fits, and the fewest GPUs with this memory.

Least memory: in every layout, the chain solver finds the partition whose fullest rank has the
fewest bytes. Each stage takes the policies that leave the fewest
(autopart/activations/frontier.py). That is exact for one stage per rank where all cuts are listed.
Where ranks have several stages, it is memory that would do.

Number of GPUs, in one pipeline under 1F1B: the t-th stage from the end (from 0) has min(t + 1, m)
microbatches in flight. That holds however many stages lie ahead. Let R(t) hold the cuts from which
t stages can go on to the end:

    R(0) = {last cut}
    R(t + 1) = cuts i with a cut j in R(t) where [i, j] fits with min(t + 1, m) in flight

Then k stages would do exactly if R(k) holds the first cut.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from autopart.activations.best_totals import least_totals_on_replicas
from autopart.activations.policies import chooses_by_rank, fits_together
from autopart.bounds.any_order_shapes import Shape
from autopart.cost.cuts import Cuts, partition_of
from autopart.cost.memory_limits import Limits, free_host_bytes, stage_fits
from autopart.pricing import most_bytes, price
from autopart.records.cluster import host_share
from autopart.records.layouts import Layout, Partition, has_virtual_stages, layouts, shapes
from autopart.records.plan import SolverName
from autopart.records.problem import CUSTOM, Problem
from autopart.schedules.named.one_f_one_b import in_flight_on_rank
from autopart.solvers import baselines, cuts_dp
from autopart.solvers.shared_ranks import leanest_path
from autopart.stopping.time_limit import check_time


class Need(NamedTuple):
    """The bytes on the fullest rank, and the layout and partition that need no more."""

    size: int
    layout: Layout
    partition: Partition


def least_need(problem: Problem, cuts: Cuts, solver: SolverName) -> Need | None:
    """The need with the fewest bytes, then the fewest stages, then the fewest replicas.

    None where no partition keeps the demands and the limit on host memory.
    """
    # Step 1: the least bytes in every pipeline, with as many replicas as possible.
    every = _differing_in_bytes(problem, shapes(problem))
    found = list(needs(problem, _widest(every), cuts, solver))
    if not found:
        return None
    least = min(found, key=lambda need: (need.size, len(need.layout.stage_ranks)))
    # Step 2: the fewest replicas that need no more.
    alike = [own for own in every if _pipeline(own) == _pipeline(least.layout)]
    return next(need for need in needs(problem, alike, cuts, solver) if need.size == least.size)


def needs(
    problem: Problem, among: Iterable[Layout], cuts: Cuts, solver: SolverName
) -> Iterator[Need]:
    """For each layout the solver's partition whose fullest rank has the fewest bytes.

    A layout is left out where no partition keeps the demands and the limit on host memory.
    """
    for layout in among:
        check_time()
        num_stages = len(layout.stage_ranks)
        if solver == "uniform":
            partition = baselines.uniform_layers(len(problem.graph.layers), num_stages)
        elif solver == "parameters":
            partition = baselines.balanced_parameters(cuts, num_stages)
        elif fits_together(problem, layout):
            path = leanest_path(problem, layout, cuts)
            if path is None:
                continue
            partition = partition_of(cuts, path)
        else:
            best = cuts_dp.least_memory(problem, layout, cuts)
            if best is not None:
                yield Need(int(best.largest), layout, partition_of(cuts, best.path))
            continue
        # The peak of a partition that is given, or whose stages share ranks.
        decision = price(problem, layout, partition)
        on_host = free_host_bytes(problem.cluster, decision.prediction)
        if chooses_by_rank(problem, layout) and on_host is not None and on_host < 0:
            continue
        yield Need(most_bytes(decision), layout, partition)


def widest_layouts(problem: Problem, among: Iterable[Shape]) -> Iterable[Layout]:
    """The layouts in some shapes that need the fewest bytes."""
    return _widest(_differing_in_bytes(problem, among))


def _pipeline(layout: Layout) -> tuple[str, object]:
    """The schedule and the placement, without the number of replicas."""
    places = layout.stage_ranks if has_virtual_stages(layout) else len(layout.stage_ranks)
    return layout.schedule, places


def _widest(among: Iterable[Layout]) -> Iterable[Layout]:
    """Among layouts that differ in their replicas only, the one with the most.

    Each of its ranks runs fewer microbatches and steps no more parameters, so it needs no more
    memory.
    """
    found: dict[tuple[str, object], Layout] = {}
    for layout in among:
        best = found.setdefault(_pipeline(layout), layout)
        if len(layout.stage_ranks[0]) > len(best.stage_ranks[0]):
            found[_pipeline(layout)] = layout
    return found.values()


def _differing_in_bytes(problem: Problem, among: Iterable[Shape]) -> list[Layout]:
    """The layouts in some shapes, one among all whose ranks need equal memory.

    Equal GPUs need equal memory on any node, and 1F1B never needs more than GPipe.
    """
    found: dict[tuple[str, object], Layout] = {}
    for shape in among:
        check_time()
        for layout in layouts(problem, *shape):
            several = has_virtual_stages(layout)
            counts = layout.stage_ranks if several else tuple(map(len, layout.stage_ranks))
            if layout.schedule != CUSTOM:
                found.setdefault((layout.schedule, counts), layout)
    return [
        layout
        for (schedule, counts), layout in found.items()
        if schedule != "gpipe" or ("1f1b", counts) not in found
    ]


def fewest_stages(problem: Problem, cuts: Cuts) -> int | None:
    """The fewest stages in one pipeline that fit under 1F1B; None where no number does."""
    # `goes_on` is R(0).
    goes_on = np.zeros(len(cuts.nested), dtype=bool)
    goes_on[-1] = True
    host, limit = host_share(problem.cluster), problem.cluster.memory_bytes
    for behind in range(len(problem.graph.layers)):
        check_time()
        # Step 1: the stages that fit with as many stages behind them.
        limits = Limits(in_flight_on_rank(problem.num_microbatches, behind, 1), limit, host)
        totals = least_totals_on_replicas(problem, cuts, 1, limits)
        good = cuts.nested & stage_fits(totals, problem, 1, limits, limits.in_flight)
        # Step 2: R(behind + 1).
        goes_on = np.any(good & goes_on[None, :], axis=1)
        if goes_on[0]:
            return behind + 1
        if not goes_on.any():
            return None
    return None
