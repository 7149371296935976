"""Steps whose sends wait for their receiver: exact, and never shorter than with buffers."""

import random
from typing import NamedTuple

import numpy as np
import pytest
from msgspec import UnsetType

from autopart.errors import ScheduleError
from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.compiled import FEW, runner_of, step_times
from autopart.simulator.costs import StageTimes, Time
from autopart.simulator.idle import idle_times
from autopart.simulator.noise import Draws, even_spread, noisy_makespans
from autopart.simulator.timeline import Timeline, busy_times, simulate
from autopart.simulator.working_order import compile_schedule

NAMES = ("gpipe", "1f1b", "zb-h1", "zbv", "interleaved-1f1b", "dualpipev")


class Drawn(NamedTuple):
    schedule: Schedule
    ranks: StageRanks
    stages: list[StageTimes[float]]
    overlap: bool


def draw(seed: int) -> Drawn:
    """A named schedule with stages of any length, on 2 to 4 ranks."""
    rng = random.Random(seed)
    name, ranks, m = rng.choice(NAMES), rng.randint(2, 4), rng.choice((4, 8))
    down = [(rank,) for rank in range(ranks)]
    line = down if name in ("gpipe", "1f1b", "zb-h1") else down + down
    if name in ("zbv", "dualpipev"):
        line = down + down[::-1]
    m = max(m, 2 * ranks) if name == "dualpipev" else ranks * m
    stages = [
        StageTimes(
            forward_time=rng.random(),
            backward_time=1 + rng.random(),
            send_time=rng.choice((0.0, rng.random())),
            send_back_time=rng.choice((0.0, rng.random())),
            update_time=rng.random(),
            weight_grad_time=rng.random(),
        )
        for _ in line
    ]
    return Drawn(make_schedule(name, line, m), tuple(line), stages, rng.random() < 0.6)


def run(drawn: Drawn, *, rendezvous: bool) -> Timeline:
    """The step; raises ScheduleError on a deadlock."""
    overlap = drawn.overlap
    return simulate(
        drawn.schedule, drawn.ranks, drawn.stages, (), action_overhead=0.01, sends_overlap=overlap,
        rendezvous=rendezvous,
    )  # fmt: skip


def longest_paths(drawn: Drawn, timeline: Timeline) -> list[float]:
    """The end of each action: the waits are relaxed until nothing changes. Sends overlap."""
    actions = timeline.actions
    seconds = np.array(timeline.times.end) - np.array(timeline.times.start)
    needs, links = actions.need.tolist(), actions.link.tolist()
    kinds = actions.kind.tolist()
    moving = [
        drawn.stages[k // 4].send_time if k % 4 == 0 else drawn.stages[k // 4].send_back_time
        for k in kinds
    ]
    takers = {giver: taker for taker, giver in enumerate(needs) if giver < actions.num_actions}
    # A message is asked for behind the action before the earliest taker of this or a later one.
    asks: dict[int, int] = {}
    before: dict[int, int] = {}
    for link in range(len(actions.links)):
        own = [giver for giver in takers if links[giver] == link]
        for at, giver in enumerate(sorted(own)):
            asks[giver] = min(takers[later] for later in own if later >= giver) - 1
            before[giver] = sorted(own)[at - 1] if at else -1
    end, arrival = [0.0] * actions.num_actions, [0.0] * actions.num_actions
    changed = True
    while changed:
        changed = False
        for i in range(actions.num_actions):
            start = end[i - 1] if i not in actions.first else 0.0
            if needs[i] < actions.num_actions:
                start = max(start, arrival[needs[i]])
            now = start + seconds[i]
            there = now
            if i in takers:
                asked = end[asks[i]] if asks[i] + 1 not in actions.first else 0.0
                queue = arrival[before[i]] if before[i] >= 0 else 0.0
                there = max(now, asked, queue) + moving[i]
            changed |= (now, there) != (end[i], arrival[i])
            end[i], arrival[i] = now, there
    return end


@pytest.mark.parametrize("seed", range(40))
def test_every_action_ends_on_the_longest_path_to_it(seed: int):
    drawn = draw(seed)._replace(overlap=True)
    timeline = run(drawn, rendezvous=True)
    assert timeline.times.end == pytest.approx(longest_paths(drawn, timeline), rel=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_no_action_starts_before_it_would_with_buffers(seed: int):
    """So every lower bound for buffered sends holds for the same orders under rendezvous."""
    drawn = draw(seed)
    buffered = run(drawn, rendezvous=False)
    try:
        waiting = run(drawn, rendezvous=True)
    except ScheduleError as error:
        assert not drawn.overlap and "sends that wait for their receiver" in str(error)
        return
    pairs = zip(waiting.times.end, buffered.times.end, strict=True)
    assert all(late >= early - 1e-12 for late, early in pairs)
    # Every second has a cause still.
    for rank, causes in enumerate(idle_times(waiting)):
        busy = busy_times(waiting.actions, waiting.times)[rank]
        update = waiting.rank_end[rank] - waiting.sync_end[rank]
        assert sum(causes.values()) + busy + update == pytest.approx(waiting.makespan, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_many_partitions_take_what_each_takes_alone(seed: int):
    drawn = draw(seed)
    try:
        alone = run(drawn, rendezvous=True).makespan
    except ScheduleError:
        return
    factors = np.linspace(1.0, 2.0, FEW + 1)
    program = compile_schedule(drawn.schedule, drawn.ranks)
    for width in (2, FEW + 1):
        some = [
            StageTimes[Time](*(factors[:width] * s for s in stage if not isinstance(s, UnsetType)))
            for stage in drawn.stages
        ]
        found = step_times(
            program, drawn.ranks, some, (), action_overhead=0.01, sends_overlap=drawn.overlap,
            rendezvous=True,
        )  # fmt: skip
        assert found[0] == pytest.approx(alone, rel=1e-12)
        assert (np.diff(found) > 0).all()


def test_noise_of_zero_gives_the_step_itself():
    drawn = draw(3)._replace(overlap=True)
    steps = noisy_makespans(
        drawn.schedule, drawn.ranks, drawn.stages, (), even_spread(0.0, len(drawn.stages)),
        action_overhead=0.01, runner=runner_of(sends_overlap=True, rendezvous=True), draws=Draws(3, 0),
    )  # fmt: skip
    assert steps == pytest.approx(run(drawn, rendezvous=True).makespan, rel=1e-12)


def test_a_sender_that_does_not_overlap_is_kept_until_its_receiver_asks():
    down = ((0,), (1,))
    stages = [StageTimes(1.0, 1.0, 2.0, 2.0, 0.0), StageTimes(10.0, 1.0, 2.0, 2.0, 0.0)]
    schedule = make_schedule("gpipe", down, 2)
    ends = {
        waits: simulate(
            schedule, down, stages, (), action_overhead=0.0, sends_overlap=False, rendezvous=waits
        ).times.end[:2]
        for waits in (False, True)
    }
    # Rank 1 takes 0F0 at 1 to 3, computes to 13, and only then asks for 0F1.
    assert ends == {False: pytest.approx([3.0, 6.0]), True: pytest.approx([3.0, 15.0])}
