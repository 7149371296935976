"""Links that several sends share, and the link to the host."""

import random

import pytest

from autopart.errors import ScheduleError
from autopart.schedule import parse_order
from autopart.schedules import make_schedule
from autopart.simulator import simulate
from autopart.simulator.contention import HostTraffic, Shared
from autopart.simulator.timeline import rank_slices
from tests.simulator.steps import random_step, stage

LINE = [(0,), (1,), (2,)]


@pytest.mark.parametrize("part", range(5))
def test_with_a_link_for_each_pair_the_order_of_time_gives_the_same_step(part: int):
    for seed in range(100 * part, 100 * part + 100):
        step = random_step(random.Random(seed))
        plain, timed = step.simulate(), step.simulate(shared=Shared({}))
        assert timed.slices == plain.slices
        assert timed.times.arrival == plain.times.arrival
        assert timed.makespan == plain.makespan


def test_sends_that_share_a_link_are_served_as_they_come():
    """0F1 is done at 2 and takes the link until 5; 1F0, done at 4, waits for it."""
    stages = [stage(1.0, 1.0, send_time=2.0), stage(1.0, 1.0, send_time=2.0), stage(1.0, 1.0)]
    asked = {"action_overhead": 0.0, "sends_overlap": True}
    schedule = make_schedule("gpipe", LINE, 2)
    apart = simulate(schedule, LINE, stages, (), **asked)
    assert [s.start for s in rank_slices(apart, 2)][:2] == [6, 8]
    link = Shared({(0, 1): 7, (1, 2): 7})
    together = simulate(schedule, LINE, stages, (), **asked, shared=link)
    assert [s.start for s in rank_slices(together, 2)][:2] == [7, 9]


@pytest.mark.parametrize("seed", range(100))
def test_a_shared_link_carries_one_send_at_a_time_and_none_is_late_without_cause(seed: int):
    step = random_step(random.Random(seed))._replace(overlap=True)
    ranks = range(len(step.schedule))
    timeline = step.simulate(shared=Shared({(a, b): 0 for a in ranks for b in ranks}))
    actions, times = timeline.actions, timeline.times
    sent = [i for i in range(actions.num_actions) if actions.link[i] >= 0]
    spans = sorted((times.send_start[i], times.arrival[i], times.end[i]) for i in sent)
    reached = 0.0
    for start, there, ready in spans:
        assert start == max(reached, ready)
        reached = there


def test_a_deadlock_names_every_blocked_rank():
    broken = (parse_order("0B0 0F0"), parse_order("1F0 1B0"))
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 0B0, rank 1 on 1F0"):
        simulate(
            broken,
            [(0,), (1,)],
            [stage()] * 2,
            (),
            action_overhead=0.0,
            sends_overlap=True,
            shared=Shared({}),
        )


@pytest.mark.parametrize("seed", range(100))
def test_the_host_link_moves_one_stash_at_a_time_and_each_is_back_before_its_backward(seed: int):
    rng = random.Random(seed)
    step = random_step(rng)
    offloads = [HostTraffic(rng.randint(1, 5), rng.randint(0, 4)) for _ in step.stages]
    timeline = step.simulate(host=offloads)
    flat = [action for order in step.schedule for action in order]
    reached = [0.0] * len(step.schedule)
    away: dict[tuple[int, int], float] = {}
    for move in timeline.times.host_moves:
        action = flat[move.action]
        assert move.end - move.start == offloads[action.stage].time
        assert move.start >= reached[move.rank]
        reached[move.rank] = move.end
        if action.op == "F":
            computed = min(timeline.times.end[move.action], timeline.times.send_start[move.action])
            assert move.start >= computed
            away[action.stage, action.microbatch] = move.end
        else:
            assert move.start >= away.pop((action.stage, action.microbatch))
            assert move.end <= timeline.times.start[move.action]
    assert not away
    assert timeline.makespan >= step.simulate().makespan
