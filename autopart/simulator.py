"""A schedule run on paper: when each action starts and ends, and what every rank then holds.

A rank runs its order one action after the other; an action starts when its rank is free and what
it needs has arrived. A send that overlaps compute travels on its own link, first in, first out; a
send that does not overlap keeps its sender busy after the action and its receiver busy before the
next one. After the last action come the gradient syncs, then each rank's optimizer step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.plan import Plan, StagePrediction, Sync, schedule_of, stage_ranks
from autopart.schedule import Action, Schedule, StageRanks, predecessors, rank_of


class Slice(NamedTuple):
    """One action on one rank; `start` and `end` in seconds from the start of the step."""

    action: Action
    start: float
    end: float


class Timeline(NamedTuple):
    """What a step looks like on every rank."""

    slices: tuple[tuple[Slice, ...], ...]
    """For each rank its actions in order; sends that do not overlap count to their action."""
    sync_end: tuple[float, ...]
    """When each rank's gradient syncs end (its last action, where it has none)."""
    rank_end: tuple[float, ...]
    """When each rank has made its optimizer step; 0 for an idle rank."""
    makespan: float
    bubble: float
    """Idle share of rank-seconds over the ranks in use: neither compute, sync, nor update."""
    in_flight: tuple[int, ...]
    """For each rank, the most microbatches past their F and before their B."""


def simulate_plan(plan: Plan) -> Timeline:
    """Run the plan's orders on paper with the stage times that the plan carries."""
    return simulate(
        schedule_of(plan),
        stage_ranks(plan),
        plan.prediction.stages,
        plan.prediction.syncs,
        action_overhead=plan.cluster.action_overhead,
        sends_overlap=plan.cluster.sends_overlap,
    )


def simulate(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StagePrediction],
    syncs: Sequence[Sync],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> Timeline:
    """Run `schedule` on paper; raises ScheduleError, naming every blocked rank, on a deadlock."""
    run = _Run(schedule, ranks, stages, action_overhead, sends_overlap)
    slices = run.to_the_end()
    return _timeline(slices, ranks, stages, syncs)


class _Run:
    """The state of one run on paper."""

    def __init__(
        self,
        schedule: Schedule,
        ranks: StageRanks,
        stages: Sequence[StagePrediction],
        action_overhead: float,
        sends_overlap: bool,
    ) -> None:
        self.schedule, self.ranks, self.stages = schedule, ranks, stages
        self.overhead, self.overlap = action_overhead, sends_overlap
        self.rank_free = [0.0] * len(schedule)
        self.link_free: dict[tuple[int, int], float] = {}
        self.arrival: dict[Action, float] = {}
        """When the result of an action is there for the neighbour that needs it."""
        self.end: dict[Action, float] = {}

    def to_the_end(self) -> list[list[Slice]]:
        slices: list[list[Slice]] = [[] for _ in self.schedule]
        at = [0] * len(self.schedule)
        waiting: dict[Action, int] = {}
        ready = list(range(len(self.schedule)))
        while ready:
            rank = ready.pop()
            order = self.schedule[rank]
            while at[rank] < len(order):
                action = order[at[rank]]
                missing = self._missing(action)
                if missing is not None:
                    waiting[missing] = rank
                    break
                slices[rank].append(self._run(rank, action))
                at[rank] += 1
                if action in waiting:
                    ready.append(waiting.pop(action))
        self._refuse_deadlock(at)
        return slices

    def _missing(self, action: Action) -> Action | None:
        for needed in predecessors(action, len(self.stages)):
            if needed not in self.end:
                return needed
        return None

    def _run(self, rank: int, action: Action) -> Slice:
        stage, op, _ = action
        cost = self.stages[stage]
        start = self.rank_free[rank]
        for needed in predecessors(action, len(self.stages)):
            start = max(start, self.arrival.get(needed, self.end[needed]))
        begin = start
        if not self.overlap:
            start += self._receive_time(rank, action)
        end = start + (cost.forward_time if op == "F" else cost.backward_time) + self.overhead
        self.end[action] = end
        self.rank_free[rank] = self._send(rank, action, end)
        return Slice(action, begin, self.rank_free[rank] if not self.overlap else end)

    def _receive_time(self, rank: int, action: Action) -> float:
        """Seconds that a rank is kept busy by taking in what `action` needs from elsewhere."""
        stage, op, m = action
        source = stage - 1 if op == "F" else stage + 1
        if not 0 <= source < len(self.stages) or rank_of(self.ranks[source], m) == rank:
            return 0.0
        sender = self.stages[source]
        return sender.send_time if op == "F" else sender.send_back_time

    def _send(self, rank: int, action: Action, end: float) -> float:
        """Send the result on; returns when the rank is free again."""
        stage, op, m = action
        target = stage + 1 if op == "F" else stage - 1
        if not 0 <= target < len(self.stages):
            return end
        other = rank_of(self.ranks[target], m)
        if other == rank:
            return end
        cost = self.stages[stage]
        duration = cost.send_time if op == "F" else cost.send_back_time
        if not self.overlap:
            self.arrival[action] = end
            return end + duration
        departure = max(end, self.link_free.get((rank, other), 0.0))
        self.link_free[rank, other] = self.arrival[action] = departure + duration
        return end

    def _refuse_deadlock(self, at: Sequence[int]) -> None:
        stuck = [
            f"rank {rank} on {order[done]}"
            for rank, (order, done) in enumerate(zip(self.schedule, at, strict=True))
            if done < len(order)
        ]
        if stuck:
            raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")


def _timeline(
    slices: list[list[Slice]],
    ranks: StageRanks,
    stages: Sequence[StagePrediction],
    syncs: Sequence[Sync],
) -> Timeline:
    ready = [own[-1].end if own else 0.0 for own in slices]
    busy = [sum(s.end - s.start for s in own) for own in slices]
    for sync in syncs:
        end = max(ready[rank] for rank in sync.ranks) + sync.time
        for rank in sync.ranks:
            ready[rank] = end
            busy[rank] += sync.time
    rank_end = list(ready)
    for stage, own in zip(stages, ranks, strict=True):
        for rank in own:
            rank_end[rank] += stage.update_time
            busy[rank] += stage.update_time
    makespan = max(rank_end)
    used = sum(1 for own in slices if own)
    return Timeline(
        slices=tuple(tuple(own) for own in slices),
        sync_end=tuple(ready),
        rank_end=tuple(rank_end),
        makespan=makespan,
        bubble=max(0.0, 1 - sum(busy) / (makespan * used)) if makespan > 0 else 0.0,
        in_flight=tuple(_in_flight([s.action for s in own]) for own in slices),
    )


def _in_flight(order: Sequence[Action]) -> int:
    held = most = 0
    for action in order:
        held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.op]
        most = max(most, held)
    return most
