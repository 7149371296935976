"""Gathers of weights and reductions of gradients on a timeline, and the seconds in which compute hides none of them.

A plan's prediction has these messages as parts of its seconds (`StateActions`). So they change no time of the
simulated step. On a rank they stand here:

    in an action        gathers from its start on, reductions up to its end
    behind the syncs    reductions once per step, the optimizer's step, gathers once per step

A layer is gathered beneath the layer before it. So an action's messages run beneath its compute, and it takes longer where
they do: by their exposed seconds.
"""

from collections.abc import Iterator
from typing import NamedTuple

from autopart.records.plan import Plan, stage_ranks
from autopart.records.prediction import StateActions, StateMessages
from autopart.schedules.actions import Action
from autopart.schedules.encoding import OPS
from autopart.schedules.state_actions import StateOp
from autopart.simulator.costs import action_time, messages_of, pair_time
from autopart.simulator.timeline import RankSpan, Timeline, optimizer_span, rank_spans


class StateSlice(NamedTuple):
    """The gathers or reductions of one action, or of one stage once per step, in seconds since the step began."""

    stage: int
    op: StateOp
    """UNSHARD or REDUCE_GRAD."""
    start: float
    end: float
    made: float
    """When the compute of their action ends; their own end once per step."""
    exposed: float
    """Seconds of them that compute does not hide."""
    action: Action | None = None
    """The action beneath which they run; None once per step."""

    @property
    def name(self) -> str:
        """Torch's word, such as `0UNSHARD`."""
        return f"{self.stage}{self.op}"


class ExposedTimes(NamedTuple):
    """One rank's seconds of gathers and reductions that compute does not hide."""

    in_actions: dict[StateOp, float]
    once_per_step: dict[StateOp, float]

    def total(self, op: StateOp) -> float:
        """All seconds of one kind."""
        return self.in_actions.get(op, 0.0) + self.once_per_step.get(op, 0.0)


def has_state_actions(plan: Plan) -> bool:
    """Whether the GPUs of the plan's ranks share state."""
    return any(isinstance(stage.state, StateActions) for stage in plan.prediction.stages)


def state_slices(plan: Plan, timeline: Timeline, rank: int) -> tuple[StateSlice, ...]:
    """One rank's gathers and reductions, by their start; `timeline` is the plan's own. Empty without sharded state."""
    if not has_state_actions(plan):
        return ()
    spans = zip(rank_spans(timeline, rank), _results(timeline, rank), strict=True)
    found = [one for span, made in spans for one in _beneath(plan, span, made)]
    return (*sorted(found, key=lambda one: one.start), *_behind(plan, timeline, rank))


def exposed_times(slices: tuple[StateSlice, ...]) -> ExposedTimes:
    """The totals of one rank's gathers and reductions."""
    found = ExposedTimes({}, {})
    for one in slices:
        times = found.once_per_step if one.action is None else found.in_actions
        times[one.op] = times.get(one.op, 0.0) + one.exposed
    return found


def _results(timeline: Timeline, rank: int) -> list[float]:
    """When each span's compute ends, before any send that its rank waits for."""
    first, stop = timeline.actions.first[rank : rank + 2]
    begins = timeline.actions.begins_pair
    times = timeline.times
    # A pair's backward has all its time: its forward is left out.
    return [min(times.end[i], times.send_start[i]) for i in range(first, stop) if not begins[i]]


def _beneath(plan: Plan, span: RankSpan, made: float) -> Iterator[StateSlice]:
    """The messages beneath an action or an overlapped pair whose compute ends at `made`."""
    stages = plan.prediction.stages
    of = [stages[action.stage] for action in span.actions]
    took = pair_time(of[0], of[1]) if len(of) > 1 else None
    first, gather_from = span.actions[0], span.start
    seconds = action_time(of[0], OPS.index(first.op)) if took is None else took
    gather_from, sum_until = max(gather_from, made - float(seconds)), made
    for action in span.actions:
        own = messages_of(stages[action.stage].state, action.op)
        if own.gather_time:
            end = min(gather_from + own.gather_time, made)
            exposed = own.exposed_gather_time
            yield StateSlice(action.stage, "UNSHARD", gather_from, end, made, exposed, action)
            gather_from = end
        if own.reduction_time:
            start = max(sum_until - own.reduction_time, span.start)
            exposed = own.exposed_reduction_time
            yield StateSlice(action.stage, "REDUCE_GRAD", start, sum_until, made, exposed, action)
            sum_until = start


def _behind(plan: Plan, timeline: Timeline, rank: int) -> Iterator[StateSlice]:
    """The messages once per step, before and behind the optimizer's step."""
    own = _steps(plan, rank)
    start = timeline.sync_end[rank]
    for at, step in own:
        if step.reduction_time:
            end = start + step.reduction_time
            yield StateSlice(at, "REDUCE_GRAD", start, end, end, step.exposed_reduction_time)
            start = end
    _, start = optimizer_span(timeline, rank)
    for at, step in own:
        if step.gather_time:
            end = start + step.gather_time
            yield StateSlice(at, "UNSHARD", start, end, end, step.exposed_gather_time)
            start = end


def _steps(plan: Plan, rank: int) -> list[tuple[int, StateMessages]]:
    """The stages of a rank with their messages once per step."""
    places = enumerate(zip(plan.prediction.stages, stage_ranks(plan), strict=True))
    return [
        (at, stage.state.step)
        for at, (stage, ranks) in places
        if rank in ranks and isinstance(stage.state, StateActions)
    ]
