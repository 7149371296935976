"""The fastest step of one partition over all activation policies, where the stages of a rank choose together.

Each rank has its least vectors (autopart/activations/rank_choices.py): seconds that policies may add to the forwards, the
backwards and the updates of its stages. A
*node* leaves each rank some of them. The step with the smallest seconds of each stage, over the vectors left to its
rank, is at most the step of every choice in the node, since a step only grows with each stage's seconds. A node whose
step reaches the value has nothing faster. Any other node is split: one rank's vectors are halved by the seconds of the
stage in which they differ most. A node with one vector for each rank is a choice, and its step is exact.

The smallest bound comes first. After some actions the tree ends, and the smallest bound that is left counts.
"""

import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.best_policies import policies_at, rank_frontiers
from autopart.activations.policies import StagePolicies, chooses_by_rank
from autopart.activations.rank_choices import SECONDS, LeastVectors
from autopart.activations.shared_ranks import SharedRanks, shared_ranks_of
from autopart.activations.state_places import with_first_place
from autopart.cost.cuts import Cuts, cuts_along, partition_of, totals_at
from autopart.cost.tied_syncs import tied_copies
from autopart.pricing import price_paths, price_totals
from autopart.records.layouts import Layout, Partition, one_replica
from autopart.records.problem import Problem
from autopart.schedules.actions import Schedule
from autopart.simulator.working_order import Program, compile_schedule
from autopart.stopping.time_limit import check_time

MOST_NODES = 400
"""Nodes of one partition's tree."""

MOST_ACTIONS = 1_000_000
"""Actions simulated for one partition's tree."""

AT_ONCE = 16
"""Nodes that are split side by side."""

ROUNDING = 1e-12
"""Relative difference of two steps that add the same numbers up in different orders."""

Left = tuple[npt.NDArray[np.int64], ...]
"""For each rank the vectors that a node leaves it."""
Path = Sequence[int]


class FastestChoice(NamedTuple):
    """The fastest step of one partition."""

    least: float
    """Seconds that no policies can beat, or the value asked for; infinite where no policies fit."""
    step: float
    """The fastest step found, in seconds; infinite where none is."""
    policies: tuple[StagePolicies, ...] | None
    """The policies with this step."""


def least_steps(
    problem: Problem,
    layout: Layout,
    program: Program,
    cuts: Cuts,
    paths: Sequence[Path],
    value: float,
) -> npt.NDArray[np.float64]:
    """Seconds that no policies can beat, for each path over the cuts; exact below `value` where trees end by themselves.

    Where each stage chooses alone, its best policies give the fastest step: the simulated one counts.
    """
    if not chooses_by_rank(problem, layout):
        return price_paths(problem, layout, program, cuts, paths)
    return np.array(
        [one.least for one in fastest_choices(problem, layout, program, cuts, paths, value)]
    )


def fastest_choices(
    problem: Problem,
    layout: Layout,
    program: Program,
    cuts: Cuts,
    paths: Sequence[Path],
    value: float,
) -> list[FastestChoice]:
    """For each path over the cuts the policies whose step is below `value` seconds, as far as the trees find them."""
    return _fastest(shared_ranks_of(problem, layout, cuts), program, paths, value)


def fastest_of_orders(
    problem: Problem, layout: Layout, partition: Partition, orders: Schedule, value: float
) -> FastestChoice:
    """The policies of one partition whose step under given orders is below `value` seconds.

    `orders` has an order for each rank of the first replica, numbered by their first stages.
    """
    cuts = cuts_along(problem.graph, partition)
    shared = SharedRanks(problem, layout, cuts, orders=orders)
    program = compile_schedule(orders, one_replica(layout).stage_ranks)
    (found,) = _fastest(shared, program, [tuple(range(len(partition) + 1))], value)
    return found


def _fastest(
    shared: SharedRanks, program: Program, paths: Sequence[Path], value: float
) -> list[FastestChoice]:
    problem, layout, cuts = shared.problem, shared.layout, shared.cuts
    routes = np.asarray(paths)
    copies = tied_copies(problem, cuts, routes)
    # Step 1: without the seconds that policies add.
    totals = with_first_place(problem, cuts.totals)
    plain = [totals_at(totals, *routes[:, s : s + 2].T) for s in range(routes.shape[1] - 1)]
    least = price_totals(problem, layout, program, plain, copies)
    # Step 2: a tree for each path that may be faster.
    found: list[FastestChoice] = []
    for path, bound, own in zip(paths, least.tolist(), copies, strict=True):
        check_time()
        if bound >= value:
            found.append(FastestChoice(bound, np.inf, None))
            continue
        vectors = shared.vectors(path)
        if vectors is None:
            found.append(FastestChoice(np.inf, np.inf, None))
            continue
        tree = _Tree(shared, program, path, vectors, own)
        found.append(tree.fastest(value))
    return found


class _Tree:
    """The choices of one partition's policies."""

    def __init__(
        self,
        shared: SharedRanks,
        program: Program,
        path: Path,
        vectors: Sequence[LeastVectors],
        copies: npt.NDArray[np.bool_],
    ) -> None:
        self.shared, self.program, self.path, self.vectors = shared, program, path, vectors
        self.copies = copies
        self.stages = [list(rank.stages) for rank in shared.ranks]
        self.best = float("inf")
        self.choice: list[int] | None = None

    def fastest(self, value: float) -> FastestChoice:
        """The fastest choice below `value` seconds."""
        actions = 2 * self.program.num_actions
        nodes, order = max(1, min(MOST_NODES, MOST_ACTIONS // actions)), itertools.count()
        root: Left = tuple(np.arange(len(own.seconds)) for own in self.vectors)
        heap = [(self._bounds([root])[0], next(order), root)]
        while heap and heap[0][0] < min(value, self.best * (1 - ROUNDING)) and nodes > 0:
            # Step 1: the nodes with the smallest bounds are split.
            children: list[Left] = []
            while heap and len(children) < AT_ONCE and (halves := self._halves(heap[0][2])):
                heapq.heappop(heap)
                children += halves
            if not children:
                # One vector is left to each rank, and some vector stands for several choices.
                break
            # Step 2: each half has its own bound. A choice has tried itself.
            nodes -= len(children)
            for node, bound in zip(children, self._bounds(children), strict=True):
                heapq.heappush(heap, (bound, next(order), node))
        least = min(self.best, heap[0][0] if heap else np.inf)
        return FastestChoice(least, self.best, self._policies())

    def _bounds(self, nodes: Sequence[Left]) -> list[float]:
        """The nodes' bounds. Each node's choice with the fewest seconds is tried, too."""
        rows = [self._seconds(node, least=True) for node in nodes]
        rows += [self._seconds(node, least=False) for node in nodes]
        totals = self.shared.with_seconds(self.path, np.array(rows))
        copies = np.broadcast_to(self.copies, (len(rows), *self.copies.shape))
        problem, layout = self.shared.problem, self.shared.layout
        steps = price_totals(problem, layout, self.program, totals, copies)
        tried = steps[len(nodes) :]
        at = int(np.argmin(tried))
        if tried[at] < self.best and all(own.places is not None for own in self.vectors):
            self.best, self.choice = float(tried[at]), [int(own[0]) for own in nodes[at]]
        return steps[: len(nodes)].tolist()

    def _seconds(self, node: Left, *, least: bool) -> npt.NDArray[np.float64]:
        """The least seconds of each stage, or those of each rank's vector with the fewest in sum.

        The shape is that of one choice in `SharedRanks.with_seconds`.
        """
        seconds = np.zeros((len(SECONDS), len(self.shared.layout.stage_ranks)))
        for stages, own, left in zip(self.stages, self.vectors, node, strict=True):
            rows = own.seconds[left]
            seconds[:, stages] = rows.min(axis=0) if least else rows[0]
        return seconds

    def _halves(self, node: Left) -> list[Left]:
        """The node in two parts; none where it has one vector for each rank."""
        spread = [
            np.ptp(_flat(own, left), axis=0) for own, left in zip(self.vectors, node, strict=True)
        ]
        rank = int(np.argmax([own.max() for own in spread]))
        if len(node[rank]) == 1:
            return []
        column = _flat(self.vectors[rank], node[rank])[:, int(np.argmax(spread[rank]))]
        unlike = np.unique(column)
        fewer = column < unlike[max(1, len(unlike) // 2)]
        return [(*node[:rank], node[rank][half], *node[rank + 1 :]) for half in (fewer, ~fewer)]

    def _policies(self) -> tuple[StagePolicies, ...] | None:
        """The policies of the fastest choice."""
        if self.choice is None:
            return None
        problem, layout = self.shared.problem, self.shared.layout
        partition = partition_of(self.shared.cuts, self.path)
        frontiers = rank_frontiers(problem, layout, partition)
        found: list[StagePolicies] = [StagePolicies()] * len(partition)
        for stages, own, row in zip(self.stages, self.vectors, self.choice, strict=True):
            assert own.places is not None
            for stage, place in zip(stages, own.places[row].tolist(), strict=True):
                found[stage] = policies_at(problem, frontiers[stage], partition[stage], place)
        return tuple(found)


def _flat(own: LeastVectors, left: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Some vectors of a rank, a row for each."""
    return own.seconds[left].reshape(len(left), -1)
