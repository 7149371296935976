"""Every idle second has one cause; the facts that fix what the causes mean, and their sums."""

import random

import pytest

from autopart.plan import StagePrediction, Sync
from autopart.schedules import make_schedule
from autopart.simulator import Timeline, simulate
from autopart.simulator.contention import HostTraffic, Shared
from autopart.simulator.idle import CAUSES, ROUNDING, idle_pieces, idle_times
from autopart.simulator.syncs import Buckets
from autopart.simulator.timeline import busy_times, exposed_time, rank_slices, used_ranks
from tests.seeds import seeds
from tests.simulator.steps import Step, random_step, stage


def run(name: str, microbatches: int, stages: list[StagePrediction], **more: object) -> Timeline:
    line = [(s,) for s in range(len(stages))]
    schedule = make_schedule(name, line, microbatches)
    asked = {"syncs": (), "action_overhead": 0.0, "sends_overlap": True} | more
    return simulate(schedule, line, stages, asked.pop("syncs"), **asked)


def causes(timeline: Timeline, rank: int) -> dict[str, float]:
    return {cause: time for cause, time in idle_times(timeline)[rank].items() if time}


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_equal_stages_fill_for_their_forwards_and_drain_for_their_backwards(name: str):
    timeline = run(name, 8, [stage(1.0, 2.0)] * 4)
    for rank in range(4):
        waits = 3.0 * (3 - rank)
        expected = {"fill": 1.0 * rank, "drain": 2.0 * rank, "dependency latency": waits}
        assert causes(timeline, rank) == {cause: t for cause, t in expected.items() if t}


def test_what_the_busiest_rank_has_more_to_do_is_imbalance():
    timeline = run("1f1b", 8, [stage(1.0, 2.0), stage(2.0, 4.0), stage(1.0, 2.0)])
    assert causes(timeline, 0)["imbalance"] == 8 * 3.0
    assert "imbalance" not in causes(timeline, 1)


def test_a_wait_for_what_is_under_way_is_a_send():
    timeline = run("gpipe", 1, [stage(send_time=0.5), stage(send_back_time=0.25)])
    assert causes(timeline, 0) == {"send": 0.75, "dependency latency": 3.0}
    assert causes(timeline, 1) == {"fill": 1.0, "send": 0.5, "drain": 2.25}


def test_a_wait_for_a_queue_on_the_link_is_a_send():
    timeline = run("gpipe", 2, [stage(1.0, 2.0, send_time=5.0), stage(1.0, 2.0)])
    assert causes(timeline, 1)["send"] == 5.0 + 4.0


def test_a_wait_that_more_microbatches_in_flight_would_shorten_is_the_memory_cap():
    """Under 1F1B with long sends 0F2 has its input at 0 and its rank is idle from 2 to 9, but does 0B0
    first; 1F2 comes from 0F2, and 0B2 from 1F2."""
    slow = [stage(1.0, 1.0, send_time=3.0), stage(1.0, 1.0, send_back_time=3.0)]
    capped = run("1f1b", 6, slow)
    found = [(p.start, p.end) for p in idle_pieces(capped)[0] if p.cause == "memory cap"]
    assert found == [(14, 19), (21, 22), (24, 29), (31, 32)]
    found = [(p.start, p.end) for p in idle_pieces(capped)[1] if p.cause == "memory cap"]
    assert found[0] == (9, 14)
    free_of_it = run("gpipe", 6, slow)
    assert capped.makespan - causes(capped, 0)["memory cap"] <= free_of_it.makespan
    assert not any("memory cap" in causes(free_of_it, rank) for rank in (0, 1))


def test_a_rank_with_less_to_do_gains_nothing_where_the_step_would_not_be_shorter():
    timeline = run("1f1b", 12, [stage(3.0, 6.0), stage(1.0, 2.0), stage(1.0, 2.0)])
    assert not any("memory cap" in causes(timeline, rank) for rank in range(3))


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_equal_stages_without_sends_gain_nothing_from_more_in_flight(stages: int):
    timeline = run("1f1b", 16, [stage(1.0, 2.0)] * stages)
    assert not any("memory cap" in causes(timeline, rank) for rank in range(stages))


def test_a_backward_whose_stash_is_still_on_the_host_waits_for_the_host_link():
    offloads = [HostTraffic(100, 4.0)]
    timeline = run("gpipe", 1, [stage(1.0, 2.0)], host=offloads)
    assert [(s.start, s.end) for s in rank_slices(timeline, 0)] == [(0, 1), (9, 11)]
    assert causes(timeline, 0) == {"host link": 8.0}


def test_after_the_last_action_of_all_ranks_idle_seconds_are_sync():
    tied = Sync(what="tied", ranks=(0, 1), time=3.0)
    stages = [stage(1.0, 2.0, update_time=0.5), stage(1.0, 2.0)]
    timeline = run("gpipe", 1, stages, syncs=(tied,))
    assert causes(timeline, 1) == {"fill": 1.0, "drain": 2.0, "sync": 0.5}


def _random_extras(rng: random.Random, step: Step) -> dict[str, object]:
    more: dict[str, object] = {}
    if rng.random() < 0.4:
        more["host"] = [HostTraffic(rng.randint(0, 5), rng.randint(0, 6)) for _ in step.stages]
    if rng.random() < 0.4:
        ranks = range(len(step.schedule))
        more["shared"] = Shared({(a, b): rng.randint(0, 2) for a in ranks for b in ranks})
    if step.syncs and rng.random() < 0.5:
        parts = 2 ** rng.randint(0, 2)  # so that shares of whole numbers stay exact
        more["buckets"] = Buckets(parts, tuple((int(s.what.split()[1]),) for s in step.syncs))
    return more


@pytest.mark.parametrize("part", seeds(4, 10))
def test_causes_add_up_to_the_idle_time_exactly_and_pieces_fill_the_gaps(part: int):
    for seed in range(100 * part, 100 * part + 100):
        rng = random.Random(seed)
        step = random_step(rng)
        timeline = step.simulate(**_random_extras(rng, step))
        busy = busy_times(timeline.actions, timeline.times)
        for rank in used_ranks(timeline):
            free = timeline.times.end[timeline.actions.first[rank + 1] - 1]
            occupied = busy[rank] + exposed_time(timeline.syncs[rank], free)
            occupied += timeline.rank_end[rank] - timeline.sync_end[rank]
            assert sum(idle_times(timeline)[rank].values()) == timeline.makespan - occupied, seed
            _assert_tiled(timeline, rank, free)


def _assert_tiled(timeline: Timeline, rank: int, free: float) -> None:
    spans = [(s.start, s.end) for s in rank_slices(timeline, rank)]
    spans += [(max(s.start, free), s.end) for s in timeline.syncs[rank]]
    spans += [(timeline.sync_end[rank], timeline.rank_end[rank])]
    spans += [(piece.start, piece.end) for piece in idle_pieces(timeline)[rank]]
    reached = 0.0
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        assert start == reached
        reached = end
    assert reached == timeline.makespan


@pytest.mark.parametrize("seed", range(50))
def test_on_any_costs_causes_add_up_within_rounding(seed: int):
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
