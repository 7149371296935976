"""Every idle second has one cause: small cases that define the causes, and their sums."""

import random

import pytest

from autopart.records.prediction import StagePrediction, Sync
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.idle import CAUSES, ROUNDING, idle_pieces, idle_times, shown_causes
from autopart.simulator.timeline import (
    Timeline,
    busy_times,
    rank_slices,
    simulate,
    sync_time,
    used_ranks,
)
from tests.support.seeds import seeds
from tests.support.steps import random_step, stage


def run(name: str, microbatches: int, stages: list[StagePrediction], **more: object) -> Timeline:
    line = [(s,) for s in range(len(stages))]
    schedule = make_schedule(name, line, microbatches)
    asked = {"syncs": (), "action_overhead": 0.0, "sends_overlap": True} | more
    return simulate(schedule, line, stages, asked.pop("syncs"), **asked)


def causes(timeline: Timeline, rank: int) -> dict[str, float]:
    return {cause: time for cause, time in idle_times(timeline)[rank].items() if time}


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_equal_stages_idle_by_forwards_in_fill_and_by_backwards_in_drain(name: str):
    timeline = run(name, 8, [stage(1.0, 2.0)] * 4)
    for rank in range(4):
        waits = 3.0 * (3 - rank)
        expected = {"fill": 1.0 * rank, "drain": 2.0 * rank, "dependency latency": waits}
        assert causes(timeline, rank) == {cause: t for cause, t in expected.items() if t}


def test_the_extra_work_on_the_busiest_rank_is_imbalance():
    timeline = run("1f1b", 8, [stage(1.0, 2.0), stage(2.0, 4.0), stage(1.0, 2.0)])
    assert causes(timeline, 0)["imbalance"] == 8 * 3.0
    assert "imbalance" not in causes(timeline, 1)


def test_a_wait_for_a_result_in_transit_is_a_send():
    timeline = run("gpipe", 1, [stage(send_time=0.5), stage(send_back_time=0.25)])
    assert causes(timeline, 0) == {"send": 0.75, "dependency latency": 3.0}
    assert causes(timeline, 1) == {"fill": 1.0, "send": 0.5, "drain": 2.25}


def test_a_wait_for_a_message_that_queues_on_the_link_is_a_send():
    timeline = run("gpipe", 2, [stage(1.0, 2.0, send_time=5.0), stage(1.0, 2.0)])
    assert causes(timeline, 1)["send"] == 5.0 + 4.0


def test_a_wait_that_more_microbatches_in_flight_would_shorten_is_the_memory_cap():
    """1F1B with long sends. 0F2 has its input at 0, and its rank is idle from 2 to 9.

    But 0B0 stands before 0F2. 1F2 waits for 0F2, and 0B2 for 1F2.
    """
    slow = [stage(1.0, 1.0, send_time=3.0), stage(1.0, 1.0, send_back_time=3.0)]
    capped = run("1f1b", 6, slow)
    found = [(p.start, p.end) for p in idle_pieces(capped)[0] if p.cause == "memory cap"]
    assert found == [(14, 19), (21, 22), (24, 29), (31, 32)]
    found = [(p.start, p.end) for p in idle_pieces(capped)[1] if p.cause == "memory cap"]
    assert found[0] == (9, 14)
    free_of_it = run("gpipe", 6, slow)
    assert capped.makespan - causes(capped, 0)["memory cap"] <= free_of_it.makespan
    assert not any("memory cap" in causes(free_of_it, rank) for rank in (0, 1))


def test_no_wait_has_the_cause_memory_cap_if_more_in_flight_would_not_shorten_the_step():
    timeline = run("1f1b", 12, [stage(3.0, 6.0), stage(1.0, 2.0), stage(1.0, 2.0)])
    assert not any("memory cap" in causes(timeline, rank) for rank in range(3))


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_equal_stages_without_sends_have_no_wait_with_the_cause_memory_cap(stages: int):
    timeline = run("1f1b", 16, [stage(1.0, 2.0)] * stages)
    assert not any("memory cap" in causes(timeline, rank) for rank in range(stages))


def test_idle_seconds_after_the_last_action_have_the_cause_sync():
    tied = Sync(what="tied", ranks=(0, 1), time=3.0)
    stages = [stage(1.0, 2.0, update_time=0.5), stage(1.0, 2.0)]
    timeline = run("gpipe", 1, stages, syncs=(tied,))
    assert causes(timeline, 1) == {"fill": 1.0, "drain": 2.0, "sync": 0.5}


def showing(timeline: Timeline, rng: random.Random) -> Timeline:
    """The timeline with drawn gathers and reductions that show at the end of each action."""
    lengths = zip(timeline.times.start, timeline.times.end, strict=True)
    return timeline._replace(
        exposed=tuple(float(rng.randint(0, int(end - start))) for start, end in lengths)
    )


def test_a_wait_for_another_rank_that_waits_for_its_gather_is_shared_state():
    timeline = run("gpipe", 1, [stage(1.0, 2.0), stage(1.0, 2.0)])
    # 0F0, 0B0, 1F0, 1B0.
    shown = timeline._replace(exposed=(0.25, 0.0, 0.0, 0.5))
    assert causes(shown, 0) == {"dependency latency": 2.5, "shared state": 0.5}
    assert causes(shown, 1) == {"fill": 0.75, "shared state": 0.25, "drain": 2.0}
    spans = [(one.start, one.end) for one in idle_pieces(shown)[0] if one.cause == "shared state"]
    assert spans == [(3.5, 4.0)]
    assert "shared state" in shown_causes(shown) and "shared state" not in shown_causes(timeline)


@pytest.mark.parametrize("seed", range(40))
def test_shared_state_takes_its_seconds_from_waits_for_compute_alone(seed: int):
    rng = random.Random(seed)
    plain = random_step(rng).simulate()
    shown = showing(plain, rng)
    for before, now in zip(idle_times(plain), idle_times(shown), strict=True):
        for cause in ("send", "lending", "memory cap", "drain", "sync"):
            assert before[cause] == now[cause]
        assert sum(before.values()) == sum(now.values())
        assert now["fill"] <= before["fill"] and not before["shared state"]


@pytest.mark.slow
@pytest.mark.parametrize("part", seeds(4, 10))
def test_causes_add_up_to_the_idle_time_exactly_and_their_spans_fill_the_gaps(part: int):
    for seed in range(100 * part, 100 * part + 100):
        rng = random.Random(seed)
        timeline = random_step(rng).simulate()
        timeline = showing(timeline, rng) if seed % 2 else timeline
        busy = busy_times(timeline.actions, timeline.times)
        for rank in used_ranks(timeline):
            occupied = busy[rank] + sync_time(timeline.syncs[rank])
            occupied += timeline.rank_end[rank] - timeline.sync_end[rank]
            assert sum(idle_times(timeline)[rank].values()) == timeline.makespan - occupied, seed
            _assert_tiled(timeline, rank)


def _assert_tiled(timeline: Timeline, rank: int) -> None:
    spans = [(s.start, s.end) for s in rank_slices(timeline, rank)]
    spans += [(s.start, s.end) for s in timeline.syncs[rank]]
    spans += [(timeline.sync_end[rank], timeline.rank_end[rank])]
    spans += [(idle.start, idle.end) for idle in idle_pieces(timeline)[rank]]
    reached = 0.0
    # Both actions of an overlapped pair have the same span.
    for start, end in sorted({span for span in spans if span[1] > span[0]}):
        assert start == reached
        reached = end
    assert reached == timeline.makespan


@pytest.mark.parametrize("seed", range(50))
def test_causes_add_up_within_rounding_for_any_costs(seed: int):
    rng = random.Random(seed)
    stages = [stage(rng.random(), rng.random(), send_time=rng.random() / 3) for _ in range(4)]
    timeline = run(rng.choice(["gpipe", "1f1b"]), 12, stages)
    busy = busy_times(timeline.actions, timeline.times)
    for rank, times in enumerate(idle_times(timeline)):
        assert list(times) == list(CAUSES)
        off = sum(times.values()) + busy[rank] - timeline.makespan
        assert abs(off) <= ROUNDING * timeline.makespan
    share = sum(sum(times.values()) for times in idle_times(timeline)) / (4 * timeline.makespan)
    assert share == pytest.approx(timeline.bubble, abs=1e-9)
