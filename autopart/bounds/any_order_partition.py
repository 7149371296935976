"""Bounds under every order for one partition on its ranks.

The formulas (1)-(12) stand in autopart/bounds/any_order_formulas.py. Here all stages are known, so
every path is exact, and ranks may run several stages. `least_step` takes the largest bound.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autopart.bounds.any_order_formulas import (
    AnyOrderPath,
    Work,
    any_order_path,
    memory_bounds,
    work_bounds,
)
from autopart.bounds.microbatch_path import always_sent, paths_along
from autopart.schedules.actions import StageRanks, dealt, rank_of
from autopart.simulator.costs import StageCosts
from autopart.simulator.syncs import SyncCost


class OrderProblem(NamedTuple):
    """A partition on its ranks, whose actions are to be put in order."""

    stages: Sequence[StageCosts[float]]
    stage_ranks: StageRanks
    """Ranks for each stage; one rank may run several stages."""
    num_microbatches: int
    syncs: Sequence[SyncCost[float]] = ()
    action_overhead: float = 0.0
    """Fixed cost for each action in seconds."""
    sends_overlap: bool = True
    rendezvous: bool = False
    """Whether sends wait for their receiver. No bound counts this wait."""
    split: bool = False
    """Whether backwards may be split into I and W."""
    stash_bytes: Sequence[int] = ()
    """For each stage, bytes that a microbatch keeps from F to B or I."""
    waiting_bytes: Sequence[int] = ()
    """For each stage, bytes that a microbatch keeps from I to W; `stash_bytes` where empty."""
    room_bytes: Sequence[int] | None = None
    """For each rank, bytes that are left for the stash; None where memory has no limit."""
    rank_starts: Sequence[float] = ()
    """For the period, when each rank starts its step, in seconds: `rank_starts`. Empty for the step.

    The seconds to minimise are then the longest from a rank's start to the end of its update."""

    def least_kept(self, stage: int) -> int:
        """Bytes that a microbatch keeps on a stage all the time from F to its backward's end."""
        return min(self._kept(stage))

    def most_kept(self, stage: int) -> int:
        """The most bytes that one microbatch keeps on a stage."""
        return max(self._kept(stage))

    def _kept(self, stage: int) -> tuple[int, int]:
        stash = self.stash_bytes[stage]
        return stash, self.waiting_bytes[stage] if self.split and self.waiting_bytes else stash


def least_step(task: OrderProblem) -> float:
    """Seconds that no order can beat, by (1)-(12); infinite where one microbatch does not fit."""
    paths, ends = _paths(task), _ends(task)
    if task.rank_starts:
        # A rank's period runs from its own start to the end of its own update.
        ends = {rank: end - task.rank_starts[rank] for rank, end in ends.items()}
    first = paths[0]
    bounds = [first.forward + first.turnaround + first.gradient + first.departure]
    bounds += _links(task, paths)
    for rank, own in _stages_on(task).items():
        bounds += _work_of_rank(task, paths, rank, own, ends[rank])
        if task.room_bytes is not None:
            bounds += _full_rank(task, paths, rank, own, ends[rank], task.room_bytes[rank])
    return max(bounds)


def rank_starts(task: OrderProblem) -> list[float]:
    """For each rank the earliest moment at which any order may start its first action, in seconds.

    A rank that starts there loses nothing. So the longest of all ranks, from there to the end of the
    update, bounds the period from above (autopart/simulator/period.py).
    """
    paths, own = _paths(task), _stages_on(task)
    return [paths[own[rank][0]].arrival if rank in own else 0.0 for rank in range(1 + max(own))]


def stays(task: OrderProblem) -> list[float]:
    """For each stage, a microbatch's least stay: from the start of F to the end of its backward."""
    return [path.stay for path in _paths(task)]


def _stages_on(task: OrderProblem) -> dict[int, list[int]]:
    """The stages on each rank in use."""
    found: dict[int, list[int]] = {}
    for stage, ranks in enumerate(task.stage_ranks):
        for rank in ranks:
            found.setdefault(rank, []).append(stage)
    return found


def _paths(task: OrderProblem) -> list[AnyOrderPath[float]]:
    """The path around each stage."""
    stages, overhead = task.stages, task.action_overhead
    sent = [
        always_sent(here, there, task.num_microbatches)
        for here, there in itertools.pairwise(task.stage_ranks)
    ]
    weights = [s.weight_grad_time if task.split else 0.0 for s in stages]
    paths = paths_along(
        [s.forward_time + overhead for s in stages],
        [s.backward_time + overhead - w for s, w in zip(stages, weights, strict=True)],
        [s.send_time if there else 0.0 for s, there in zip(stages, sent, strict=False)],
        [s.send_back_time if there else 0.0 for s, there in zip(stages[1:], sent, strict=True)],
    )
    # The microbatch ends on the rank of stage 0 that has the least left to do.
    ends = _ends(task)
    end = weights[0] + min(ends[rank] for rank in task.stage_ranks[0])
    return [
        any_order_path(path, w, end, sends_overlap=task.sends_overlap)
        for path, w in zip(paths, weights, strict=True)
    ]


def _ends(task: OrderProblem) -> dict[int, float]:
    """E for each rank in use."""
    late = [sync.time if sync.parts is None else sync.parts.late_time or 0.0 for sync in task.syncs]
    return {
        rank: sum(task.stages[stage].update_time for stage in own)
        + sum(time for sync, time in zip(task.syncs, late, strict=True) if rank in sync.ranks)
        + least_exposed(task, rank)
        for rank, own in _stages_on(task).items()
    }


def least_exposed(task: OrderProblem, rank: int) -> float:
    """Seconds of some sync's buckets that surely follow the rank's last action, slowdown included.

    Any of its stages may be the one that runs last.
    """
    exposed = [0.0 for own in task.stage_ranks if rank in own]
    place = {stage: at for at, stage in enumerate(_stages_of(task, rank))}
    for sync in task.syncs:
        if sync.parts is not None and sync.parts.stage in place and rank in sync.ranks:
            parts = sync.parts
            least = parts.slows_backward + parts.after_backward
            if task.split:
                least = min(least, parts.slows_weights + parts.after_weights)
            exposed[place[parts.stage]] = least
    return min(exposed, default=0.0)


def _stages_of(task: OrderProblem, rank: int) -> list[int]:
    return [stage for stage, own in enumerate(task.stage_ranks) if rank in own]


def _work_of_rank(
    task: OrderProblem,
    paths: Sequence[AnyOrderPath[float]],
    rank: int,
    own: Sequence[int],
    end: float,
) -> Iterable[float]:
    """(1)-(5); without microbatches the rank bounds nothing."""
    counts = [len(dealt(task.stage_ranks[s], rank, task.num_microbatches)) for s in own]
    busy = [(n, paths[s]) for n, s in zip(counts, own, strict=True) if n]
    if not busy:
        return ()
    work = Work(
        forward=sum(n * (path.forward + path.send) for n, path in busy),
        gradient=sum(n * (path.gradient + path.send_back) for n, path in busy),
        weights=sum(n * path.weights for n, path in busy),
        end=end,
    )
    return work_bounds(busy[0][1], busy[-1][1], work)


def _links(task: OrderProblem, paths: Sequence[AnyOrderPath[float]]) -> list[float]:
    """(6) for each link in each direction; sends that keep their ranks busy have no own link."""
    if not task.sends_overlap:
        return []
    # Step 1: count the sends behind each stage, by the pair of ranks that they join.
    crossing: dict[tuple[int, int], dict[int, int]] = {}
    for stage in range(len(task.stages) - 1):
        here, there = task.stage_ranks[stage : stage + 2]
        for m in range(task.num_microbatches):
            pair = (rank_of(here, m), rank_of(there, m))
            if pair[0] != pair[1]:
                sends = crossing.setdefault(pair, {})
                sends[stage] = sends.get(stage, 0) + 1
    bounds: list[float] = []
    for sends in crossing.values():
        # Step 2: activations, from the first microbatch's F to the last one's path back.
        before, behind = paths[min(sends)], paths[max(sends) + 1]
        down = sum(n * task.stages[s].send_time for s, n in sends.items())
        rest = behind.forward + behind.turnaround + behind.gradient
        bounds.append(before.arrival + before.forward + down + rest + behind.departure)
        # Step 3: gradients, from the first microbatch's I to the last one's path back.
        back = sum(n * task.stages[s + 1].send_back_time for s, n in sends.items())
        ahead = behind.arrival + behind.forward + behind.turnaround + behind.gradient
        bounds.append(ahead + back + before.gradient + before.departure)
    return bounds


def _full_rank(
    task: OrderProblem,
    paths: Sequence[AnyOrderPath[float]],
    rank: int,
    own: Sequence[int],
    end: float,
    room: int,
) -> list[float]:
    """(7)-(12)."""
    bounds, kept, area = [0.0], 0, 0.0
    # A microbatch keeps the stash of several stages on one rank where that rank runs it on all.
    together = len({tuple(task.stage_ranks[s]) for s in own}) == 1
    for s in own:
        n = len(dealt(task.stage_ranks[s], rank, task.num_microbatches))
        kept = task.least_kept(s) + (kept if together else 0)
        if n and kept > room:
            return [math.inf]
        if n and kept:
            bounds += memory_bounds(paths[s], n, min(n, room // kept), end, split=task.split)
        area += n * task.least_kept(s) * paths[s].stay
    return [*bounds, paths[own[0]].arrival + area / room + end] if area else bounds
