"""The period: seconds between the same point of consecutive steps, where steps run back to back.

Each rank runs its order, its syncs and its update. Then it starts the next step at once, while other
ranks still drain the last one. Nothing else separates two steps.

Let x(j) be the times at which step j leaves each rank and each link free. Every time in step j + 1
is the largest of some sums: an entry of x(j), plus seconds that do not depend on j. So

    x(j + 1)_i = max over l of  A[i, l] + x(j)_l                                                (1)

A[i, l] is the longest path within one step from l to i. A[r, r] is the time from rank r's start to
its own update's end. This is a linear system over (max, +). However the first step starts, its times
grow by the largest mean of a circle in A (Baccelli, Cohen, Olsder and Quadrat, Synchronization and
Linearity, 1992, section 3.2):

    period = max over circles i0, i1, ... ic = i0 of  (A[i1, i0] + ... + A[ic, i(c-1)]) / c      (2)

For any x and the x' that c more steps give,

    min over i of (x' - x)_i / c  <=  period  <=  max over i of (x' - x)_i / c                   (3)

where the left side needs each rank to wait for each other one, over some steps. Ranks of one pipeline
do so: activations go one way, gradients the other. Of groups of ranks that share nothing the slowest
one counts.

1. Steps are simulated one after the other, until both sides of (3) meet. They do once steps repeat.
2. A rank that is nearly as slow as the slowest one delays that for many steps. So x begins anew with
   a late start of the slowest rank alone, and takes max(x, A x - period). A few rounds give every rank
   its delay behind the slowest one, and both sides of (3) meet.
3. Where they do not, A itself is computed, a column for each rank and link, and (2) by Karp's
   algorithm (Discrete Mathematics 1978).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt

from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.schedules.actions import Schedule, StageRanks
from autopart.simulator.carried import Carried
from autopart.simulator.compiled import run_on_arrays, run_once
from autopart.simulator.costs import (
    FloatArray,
    KindCosts,
    StageCosts,
    StageTimes,
    SyncTime,
    Time,
    kind_costs,
)
from autopart.simulator.syncs import SyncCost, add_updates, after_syncs, effects_of
from autopart.simulator.working_order import Program, compile_schedule

TIGHT = 1e-13
"""Relative difference between both sides of (3) that counts as rounding."""

FEW_STEPS, MOST_STEPS = 6, 24
"""Steps that are simulated before the slowest rank is looked at, for the first time and the last."""

MOST_TURNS, ROUNDS = 6, 12
"""The largest c in (3), and the rounds in which delays behind the slowest rank spread."""

LATE = 16.0
"""Periods by which the slowest rank starts late."""

Times = npt.NDArray[np.float64]
"""x: seconds for each rank and link, shape (ranks and links, partitions)."""

Both = tuple[FloatArray, FloatArray]
"""Both sides of (3), in seconds for each partition."""


def period_of(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StageCosts[float]],
    syncs: Sequence[SyncCost[float]],
    *,
    action_overhead: float,
    sends_overlap: bool,
    rendezvous: bool = False,
) -> float:
    """One schedule's period in seconds; the parameters are those of `simulate`.

    Raises ScheduleError, naming the blocked ranks, on a deadlock.
    """
    found = period_times(
        compile_schedule(schedule, ranks),
        ranks,
        stages,
        syncs,
        action_overhead=action_overhead,
        sends_overlap=sends_overlap,
        rendezvous=rendezvous,
    )
    return float(found[0])


def period_of_plan(plan: Plan) -> float:
    """The period of a plan's orders in seconds, with the stage times in its prediction."""
    return period_of(
        schedule_of(plan),
        stage_ranks(plan),
        plan.prediction.stages,
        plan.prediction.syncs,
        action_overhead=plan.cluster.action_overhead,
        sends_overlap=plan.cluster.sends_overlap,
        rendezvous=plan.cluster.sends == "rendezvous",
    )


def period_times(
    program: Program,
    ranks: StageRanks,
    stages: Sequence[StageCosts[Time]],
    syncs: Sequence[SyncCost[Time]],
    *,
    action_overhead: float,
    sends_overlap: bool,
    rendezvous: bool = False,
) -> FloatArray:
    """One schedule's periods for several partitions at once, in seconds, shape (partitions,).

    Raises ScheduleError where rendezvous sends deadlock.
    """
    costs = kind_costs(stages, action_overhead, program.actions.pair_kinds)
    compute, moving = (part.reshape(len(part), -1) for part in (costs.compute, costs.moving))
    costs = costs._replace(compute=compute, moving=moving)
    steps = _Steps(program, ranks, stages, syncs, costs, sends_overlap, rendezvous)
    low, high = _simulated(steps)
    for each in np.flatnonzero(high - low > TIGHT * high).tolist():
        low[each] = high[each] = _largest_mean(steps, each)
    return (low + high) / 2


class _Steps(NamedTuple):
    """Steps of several partitions, one behind the other."""

    program: Program
    ranks: StageRanks
    stages: Sequence[StageCosts[Any]]
    syncs: Sequence[SyncCost[Any]]
    costs: KindCosts
    """Shape (kinds, partitions)."""
    sends_overlap: bool
    rendezvous: bool

    @property
    def width(self) -> int:
        """Partitions."""
        return self.costs.compute.shape[-1]

    @property
    def used(self) -> list[int]:
        """The ranks in use."""
        return sorted({rank for own in self.ranks for rank in own})

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """The links that have times of their own."""
        return self.program.actions.links if self.sends_overlap else ()

    def after(self, x: Times, *, on_arrays: bool = False) -> Times:
        """A times x: x after one more step. With `on_arrays` some times may be minus infinite."""
        used, free = self.used, [np.zeros(x.shape[1])] * len(self.program.actions.schedule)
        for rank, times in zip(used, x, strict=False):
            free[rank] = times
        idle = [np.zeros(x.shape[1])] * (0 if self.links else len(self.program.actions.links))
        before = Carried(free, [*x[len(used) :], *idle])
        effects = effects_of(self.program.actions, self.syncs, self.costs.lending)
        runner = run_on_arrays if on_arrays else run_once
        ends = runner(
            self.program,
            self.costs,
            before,
            effects,
            sends_overlap=self.sends_overlap,
            rendezvous=self.rendezvous,
        )
        synced = after_syncs(ends.free, self.syncs, np.maximum, effects, ends.watched, before.ranks)
        updated = add_updates(synced, self.ranks, self.stages)
        rows = [*(updated[rank] for rank in used), *(ends.links if self.links else ())]
        return np.array(np.broadcast_arrays(*rows, np.zeros(x.shape[1]))[:-1])

    def groups(self) -> list[list[int]]:
        """The rows of x for each group of ranks that shares messages or syncs."""
        graph = nx.Graph()
        graph.add_nodes_from(self.used)
        graph.add_edges_from(self.program.actions.links)
        for sync in self.syncs:
            nx.add_path(graph, sync.ranks)
        row = {rank: at for at, rank in enumerate(self.used)}
        return [
            [row[rank] for rank in group]
            + [len(row) + at for at, (sender, _) in enumerate(self.links) if sender in group]
            for group in nx.connected_components(graph)
        ]


def _simulated(steps: _Steps) -> Both:
    """Both sides of (3) as near to each other as steps bring them."""
    groups = steps.groups()
    x = [np.zeros((len(steps.used) + len(steps.links), steps.width))]
    low, high = np.zeros(steps.width), np.full(steps.width, np.inf)
    for step in range(1, MOST_STEPS + 1):
        x.append(steps.after(x[-1]))
        for turns in range(1, min(step, MOST_TURNS) + 1):
            sides = _sides((x[-1] - x[-1 - turns]) / turns, groups)
            low, high = np.maximum(low, sides[0]), np.minimum(high, sides[1])
        if step in (FEW_STEPS, MOST_STEPS) and not _meet(low, high):
            slowest = np.argmax(x[-1] - x[-2], axis=0)
            sides = _from_slowest(steps, groups, slowest, high)
            low, high = np.maximum(low, sides[0]), np.minimum(high, sides[1])
        if _meet(low, high):
            break
        del x[:-MOST_TURNS]
    return low, high


def _from_slowest(
    steps: _Steps, groups: list[list[int]], slowest: npt.NDArray[np.int64], period: FloatArray
) -> Both:
    """Both sides of (3), where x begins with a late start of each partition's slowest row alone."""
    x = np.zeros((len(steps.used) + len(steps.links), steps.width))
    x[slowest, np.arange(steps.width)] = LATE * period
    low, high = np.zeros(steps.width), np.full(steps.width, np.inf)
    for _ in range(ROUNDS):
        after = steps.after(x)
        sides = _sides(after - x, groups)
        low, high = np.maximum(low, sides[0]), np.minimum(high, sides[1])
        if _meet(low, high):
            break
        x = np.maximum(x, after - period)
    return low, high


def _sides(grown: Times, groups: list[list[int]]) -> Both:
    """Both sides of (3), where each row has grown by so many seconds."""
    least = np.array([grown[rows].min(axis=0) for rows in groups])
    return least.max(axis=0), grown.max(axis=0)


def _meet(low: FloatArray, high: FloatArray) -> bool:
    return bool((high - low <= TIGHT * high).all())


def _largest_mean(steps: _Steps, each: int) -> float:
    """(2) in seconds for one partition, by Karp's algorithm."""
    size = len(steps.used) + len(steps.links)
    lent = {stage: _entry(seconds, each) for stage, seconds in steps.costs.lending.items()}
    own_column, costs = np.full(size, each), steps.costs
    own = steps._replace(
        costs=KindCosts(costs.compute[:, own_column], costs.moving[:, own_column], lent),
        stages=[_stage_of(stage, each) for stage in steps.stages],
        syncs=[_sync_of(sync, each) for sync in steps.syncs],
    )
    # Column l of A are the times after a step in which l alone was free, at 0.
    matrix = own.after(np.where(np.eye(size, dtype=bool), 0.0, -np.inf), on_arrays=True)
    # longest[c] is the longest path with c arcs that ends in each row.
    longest = [np.zeros(size)]
    for _ in range(size):
        longest.append((matrix + longest[-1]).max(axis=1))
    means = [(longest[-1] - longest[c]) / (size - c) for c in range(size)]
    return float(np.minimum.reduce(means).max())


class _PartSeconds(NamedTuple):
    """The parts of one partition's sync in seconds."""

    stage: int
    early_time: float
    after_backward: float
    after_weights: float
    slows_backward: float
    slows_weights: float
    late_time: float | None
    gather_wait: float


def _stage_of(stage: StageCosts[Time], each: int) -> StageTimes[float]:
    """One partition's stage."""
    return StageTimes(**{name: _entry(getattr(stage, name), each) for name in StageTimes._fields})


def _sync_of(sync: SyncCost[Time], each: int) -> SyncTime[float]:
    """One partition's sync."""
    parts = None
    if sync.parts is not None:
        parts = _PartSeconds(
            **{name: _entry(getattr(sync.parts, name), each) for name in _PartSeconds._fields}
        )
    return SyncTime(sync.ranks, _entry(sync.time, each), parts)


def _entry(seconds: Any, each: int) -> Any:
    return float(seconds[each]) if isinstance(seconds, np.ndarray) else seconds
