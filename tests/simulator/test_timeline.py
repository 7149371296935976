import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.records.prediction import StagePrediction, Sync
from autopart.schedules.actions import (
    Action,
    Schedule,
    StageRanks,
    parse_order,
    rank_of,
)
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.named.gpipe import gpipe
from autopart.schedules.named.one_f_one_b import one_f_one_b
from autopart.simulator.timeline import Timeline, simulate
from tests.support.problems import memory_use
from tests.support.waits import predecessors

NOTHING = memory_use()


def stage(forward: float = 1.0, backward: float = 2.0, **fields: float) -> StagePrediction:
    base = {
        "weight_grad_time": backward / 2,
        "send_time": 0.0,
        "send_back_time": 0.0,
        "update_time": 0.0,
    }
    return StagePrediction(
        forward_time=forward,
        backward_time=backward,
        busy_time=forward + backward,
        in_flight=1,
        stash_bytes=0,
        memory=NOTHING,
        peak_bytes=0,
        **(base | fields),
    )


def run(
    schedule: Schedule,
    ranks: StageRanks,
    stages: list[StagePrediction],
    syncs: tuple[Sync, ...] = (),
    overhead: float = 0.0,
    overlap: bool = True,
) -> Timeline:
    return simulate(schedule, ranks, stages, syncs, action_overhead=overhead, sends_overlap=overlap)


def line(num_stages: int) -> list[list[int]]:
    return [[s] for s in range(num_stages)]


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(1, 20), st.sampled_from(["gpipe", "1f1b"]))
def test_the_bubble_of_equal_stages_is_stages_minus_one_over_all_slots(
    stages: int, microbatches: int, name: str
):
    schedule = make_schedule(name, line(stages), microbatches)
    timeline = run(schedule, line(stages), [stage()] * stages)
    assert timeline.makespan == pytest.approx(3 * (microbatches + stages - 1), rel=1e-12)
    assert timeline.bubble == pytest.approx((stages - 1) / (microbatches + stages - 1), abs=1e-12)


def test_one_f_one_b_on_three_stages_has_the_slots_of_its_picture():
    timeline = run(one_f_one_b(line(3), 4), line(3), [stage()] * 3)
    starts = [[(str(s.action), s.start) for s in own] for own in timeline.slices]
    assert starts[0] == [
        ("0F0", 0), ("0F1", 1), ("0F2", 2), ("0B0", 7), ("0F3", 9), ("0B1", 10), ("0B2", 13), ("0B3", 16),
    ]  # fmt: skip
    assert starts[2][0] == ("2F0", 2) and starts[2][-1] == ("2B3", 12)
    assert timeline.makespan == 18
    assert timeline.in_flight == (3, 2, 1)


def test_a_send_that_overlaps_delays_only_the_receiver():
    stages = [stage(send_time=0.5), stage(send_back_time=0.25)]
    timeline = run(gpipe(line(2), 2), line(2), stages)
    assert [s.start for s in timeline.slices[0]] == [0, 1, 5.75, 7.75]
    assert [s.start for s in timeline.slices[1]] == [1.5, 2.5, 3.5, 5.5]


def test_sends_on_one_link_run_one_after_another():
    stages = [stage(send_time=5.0), stage()]
    timeline = run(gpipe(line(2), 2), line(2), stages)
    assert [s.start for s in timeline.slices[1]][:2] == [6, 11]


def test_a_send_that_does_not_overlap_occupies_both_ranks():
    stages = [stage(send_time=0.5), stage()]
    timeline = run(gpipe(line(2), 2), line(2), stages, overlap=False)
    assert [(s.start, s.end) for s in timeline.slices[0]][:2] == [(0, 1.5), (1.5, 3)]
    assert [(s.start, s.end) for s in timeline.slices[1]][:2] == [(1, 2.5), (2.5, 4)]


def test_each_action_has_the_action_overhead():
    timeline = run(gpipe(line(1), 3), line(1), [stage()], overhead=0.1)
    assert timeline.makespan == pytest.approx(9.6)


def test_the_cost_of_splitting_a_backward_falls_to_its_input_gradient_alone():
    whole = run(gpipe(line(1), 3), line(1), [stage(split_time=0.25)])
    assert whole.makespan == 9
    split = run(make_schedule("zb-h1", line(1), 3), line(1), [stage(split_time=0.25)])
    assert split.makespan == pytest.approx(9.75)
    times = {str(s.action): s.end - s.start for s in split.slices[0]}
    assert (times["0F0"], times["0I0"], times["0W0"]) == pytest.approx((1, 1.25, 1))


def test_syncs_wait_for_all_their_ranks_and_the_update_comes_last():
    stages = [stage(update_time=0.5), stage(1.0, 1.0)]
    sync = Sync(what="tied", ranks=(0, 1), time=3.0)
    timeline = run(gpipe(line(2), 1), line(2), stages, (sync,))
    assert timeline.sync_end == (8, 8)
    assert timeline.rank_end == (8.5, 8)
    assert timeline.makespan == 8.5
    assert timeline.bubble == pytest.approx(1 - (3 + 3 + 0.5 + 2 + 3) / (2 * 8.5))


def test_a_deadlock_names_every_blocked_rank():
    broken = (parse_order("0B0 0F0"), parse_order("1F0 1B0"))
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 0B0, rank 1 on 1F0"):
        run(broken, line(2), [stage()] * 2)


def longest_path(
    schedule: Schedule, ranks: StageRanks, stages: list[StagePrediction], overhead: float
) -> float:
    """The makespan with sends that overlap: arcs are relaxed until nothing changes."""
    before: dict[Action, list[tuple[Action, float]]] = {}
    for own in schedule:
        for at, action in enumerate(own):
            arcs = [(own[at - 1], 0.0)] if at else []
            for needed in predecessors(action, len(stages)):
                here, there = (rank_of(ranks[a.stage], a.microbatch) for a in (action, needed))
                source = stages[needed.stage]
                send = source.send_time if needed.op == "F" else source.send_back_time
                arcs.append((needed, send if here != there else 0.0))
            before[action] = arcs
    end = dict.fromkeys(before, 0.0)
    changed = True
    while changed:
        changed = False
        for action, arcs in before.items():
            cost = stages[action.stage]
            own = overhead + (cost.forward_time if action.op == "F" else cost.backward_time)
            reached = own + max((end[a] + wait for a, wait in arcs), default=0.0)
            if reached > end[action]:
                end[action], changed = reached, True
    return max(end.values())


@pytest.mark.parametrize("seed", range(150))
def test_the_makespan_is_the_longest_path(seed: int):
    rng = random.Random(seed)
    num_stages, replicas = rng.randint(1, 5), rng.randint(1, 2)
    ranks = [[s * replicas + q for q in range(replicas)] for s in range(num_stages)]
    stages = [
        stage(rng.uniform(0, 3), rng.uniform(0, 3), send_time=rng.uniform(0, 0.1), send_back_time=rng.uniform(0, 0.1))
        for _ in range(num_stages)
    ]  # fmt: skip
    schedule = make_schedule(rng.choice(["gpipe", "1f1b"]), ranks, rng.randint(1, 8))
    made = run(schedule, ranks, stages, overhead=0.2)
    assert made.makespan == pytest.approx(longest_path(schedule, ranks, stages, 0.2), rel=1e-12)
