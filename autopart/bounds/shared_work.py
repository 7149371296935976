"""Lower bounds on a step under GPipe and 1F1B, from the work of all stages together.

They hold for any cuts, on any ranks. Symbols are as in autopart/bounds/classic_schedules.py, for k
stages with m microbatches on each rank. x is the work F + B ahead of stage s, and w its own, both
without fixed costs. g are a microbatch's fewest seconds over one cut, there and back. A step of V
seconds keeps, for each stage,

    x + s (2 o + g) + m (w + 2 o)                                                  <= V   by (1)
    GPipe   P + (m - 1) (w + 2 o)                                                  <= V   by (2)
    1F1B    P + (m - y) (w + 2 o) + (y - 1) (share w + o)                          <= V   by (3)
            P + (T - x - w) + (k - 1 - s) (2 o + g) + (m - y) (w + 2 o)            <= V   by (4)

with P = T + 2 k o + (k - 1) g and y = min(k - s, m). (4) has d = 2, and asks for y < m. max(f, b)
is at least a share of w. Every line allows a stage more work where more lies ahead of it, or less
work by no more than x grows. So the most work of the first s stages is found stage by stage. Where
k stages cannot do all work, no step takes V seconds. Bisection finds the largest such V.

Stages with equal work attain (2) and (4): the bound is then T (m + k - 1) / k.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.cost.links import link_across, send_time
from autopart.records.cluster import Cluster, fastest_speed
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

BISECTIONS = 45
"""Times that the interval around a bound is cut in two."""

ROUNDING = 1e-12
"""Relative error of a sum over stages."""


def shared_work_bounds(
    problem: Problem, schedule: str, pipelines: Sequence[tuple[int, int]]
) -> Matrix:
    """Seconds that no step can beat, for each pair of stages and microbatches per rank."""
    return np.array(_least_steps(_work_of(problem), schedule, tuple(pipelines)))


@functools.lru_cache(maxsize=32)
def _least_steps(
    work: "_Work", schedule: str, pipelines: tuple[tuple[int, int], ...]
) -> tuple[float, ...]:
    """`shared_work_bounds`; problems that differ in their policies have the same."""
    stages, microbatches = np.array(pipelines, dtype=np.float64).reshape(-1, 2).T
    # One stage may have all the work, so no bound lies above `high`.
    fixed = (microbatches + stages) * (2 * work.overhead + work.sends)
    low, high = np.zeros(len(stages)), (microbatches + 1) * work.seconds + fixed
    lines = _lines(work, schedule, stages, microbatches)
    for _ in range(BISECTIONS):
        check_time()
        # No step lies below `low`.
        middle = (low + high) / 2
        enough = _holds_all(work, lines, stages, microbatches, middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return tuple(low.tolist())


class _Work(NamedTuple):
    """A model's work for one microbatch on the fastest GPU."""

    seconds: float
    """T."""
    share: float
    """The least part that the longer direction has in a stage's work."""
    overhead: float
    """o."""
    sends: float
    """g."""


def _work_of(problem: Problem) -> _Work:
    forward, backward = _passes(problem.graph)
    return _Work(
        seconds=float((forward + backward).sum()) / fastest_speed(problem.cluster),
        share=least_share(problem.graph),
        overhead=problem.cluster.action_overhead,
        sends=cheapest_cut(problem.graph, problem.cluster),
    )


def least_share(graph: LayerGraph) -> float:
    """The least part, from 0 to 1, that the longer direction has in any stage's work."""
    forward, backward = _passes(graph)
    both = forward + backward
    some = both > 0
    shares = [float((one[some] / both[some]).min(initial=1.0)) for one in (forward, backward)]
    return max(0.5, *shares)


def _passes(graph: LayerGraph) -> tuple[Matrix, Matrix]:
    """Forward and backward seconds of each layer, shape (layers,)."""
    layers = graph.layers
    return (
        np.array([la.forward_time for la in layers]),
        np.array([la.input_grad_time + la.weight_grad_time for la in layers]),
    )


def cheapest_cut(graph: LayerGraph, cluster: Cluster) -> float:
    """Seconds that one microbatch needs at least over any cut, there and back, on the best link.

    Some value crosses every cut in a connected graph. 0 where the graph is not connected.
    """
    values = [value for value in graph.values if value.consumers]
    if not _connected(graph):
        return 0.0
    links = [cluster.intra_node, link_across(cluster)]
    if cluster.num_nodes == 1 or cluster.gpus_per_node == 1:
        links = [links[cluster.gpus_per_node == 1]]
    there = [send_time(link, float(v.bytes), 1) for link in links for v in values]
    back = [
        send_time(link, float(v.bytes * v.has_gradient), int(v.has_gradient))
        for link in links
        for v in values
    ]
    return min(there, default=0.0) + min(back, default=0.0)


def _connected(graph: LayerGraph) -> bool:
    """Whether each layer is joined to every other one by values, whatever their direction."""
    place = positions(graph)
    joined = list(range(len(graph.layers)))

    def root(at: int) -> int:
        while joined[at] != at:
            joined[at] = at = joined[joined[at]]
        return at

    for value in graph.values:
        for consumer in value.consumers:
            joined[root(place[consumer])] = root(place[value.producer])
    return len({root(at) for at in joined}) == 1


class _Turns(NamedTuple):
    """How often a line counts a stage's work, shape (pipelines,)."""

    some: Mask
    """Where it counts at all."""
    divisor: Matrix
    """The times that it counts, 1 where it does not."""
    always: bool
    """Whether it counts in all pipelines."""

    def most(self, seconds: Matrix) -> Matrix:
        """The most work whose turns take at most so many seconds; below 0 where there is none."""
        limited = seconds / self.divisor
        if self.always:
            return limited
        return np.where(self.some, limited, np.where(seconds >= 0, np.inf, -1.0))


def _turns(count: Matrix) -> _Turns:
    some = count > 0
    return _Turns(some, np.where(some, count, 1), bool(some.all()))


class _Lines(NamedTuple):
    """The lines of one stage, as far as no step and no work ahead changes them: seconds, shape (pipelines,)."""

    here: Mask
    """Whether the pipeline has the stage."""
    fixed: tuple[Matrix, ...]
    """Fixed costs of the stage's actions in (2) or (3)."""
    rest: _Turns
    beyond: Matrix
    """Fixed costs and sends behind the stage in (4)."""
    beside: Matrix
    """Fixed costs of the stage's actions in (4)."""
    again: _Turns
    turns: Mask
    """Where (4) holds; GPipe has it nowhere."""


def _lines(work: _Work, schedule: str, k: Matrix, m: Matrix) -> list[_Lines]:
    """The lines of every stage."""
    _, share, o, g = work
    found: list[_Lines] = []
    for stage in range(int(k.max(initial=0))):
        y = np.minimum(k - stage, m)
        if schedule == "gpipe":
            fixed, rest = ((m - 1) * 2 * o,), m - 1
        else:
            fixed, rest = ((m - y) * 2 * o, (y - 1) * o), (m - y) + (y - 1) * share
        found.append(
            _Lines(
                here=stage < k,
                fixed=fixed,
                rest=_turns(rest),
                beyond=(k - 1 - stage) * (2 * o + g),
                beside=(m - y) * 2 * o,
                again=_turns(m - y - 1),
                turns=(y < m) & (schedule != "gpipe"),
            )
        )
    return found


def _holds_all(work: _Work, lines: Sequence[_Lines], k: Matrix, m: Matrix, step: Matrix) -> Mask:
    """Whether the stages of each pipeline may have all work in a step of so many seconds."""
    total, _, o, g = work
    spare = step - (total + 2 * k * o + (k - 1) * g)
    ahead = np.zeros(len(k))
    possible = np.ones(len(k), dtype=bool)
    for stage, line in enumerate(lines):
        # Step 1: the most work that each line leaves this stage.
        most = (step - ahead - stage * (2 * o + g)) / m - 2 * o
        if line.turns.any():
            again = spare - (total - ahead) - line.beyond - line.beside
            most = np.where(line.turns, np.minimum(most, line.again.most(again)), most)
        rest = spare
        for seconds in line.fixed:
            rest = rest - seconds
        most = np.minimum(most, line.rest.most(rest))
        # Step 2: it does so much, where it is a stage of the pipeline at all.
        possible &= ~line.here | (most >= 0)
        ahead = np.where(line.here, np.minimum(ahead + np.maximum(most, 0.0), total), ahead)
    # Sums of times that are added up in another order may differ by rounding.
    return possible & (ahead >= total * (1 - ROUNDING))
