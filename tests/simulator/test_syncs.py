"""Gradient syncs in buckets, beside the last backwards."""

import itertools
import random

import pytest

from autopart.plan import Sync
from autopart.schedule import parse_order
from autopart.simulator import simulate
from autopart.simulator.syncs import Buckets
from autopart.simulator.timeline import exposed_time, used_ranks
from tests.simulator.steps import random_step, stage

ASKED = {"action_overhead": 0.0, "sends_overlap": True}


def test_parts_of_a_sync_start_as_the_last_backward_goes_on():
    """Two replicas, the last backward from 1 to 5; four parts of one second."""
    schedule = (parse_order("0F0 0B0"), parse_order("0F1 0B1"))
    sync = Sync(what="stage 0", ranks=(0, 1), time=4.0)
    stages = [stage(1.0, 4.0, update_time=0.5)]
    late = simulate(schedule, [(0, 1)], stages, (sync,), **ASKED)
    assert late.makespan == 9.5
    parts = simulate(schedule, [(0, 1)], stages, (sync,), **ASKED, buckets=Buckets(4, ((0,),)))
    assert [(s.start, s.end) for s in parts.syncs[0]] == [(2, 3), (3, 4), (4, 5), (5, 6)]
    assert parts.makespan == 6.5
    assert parts.bubble == 0.0


def test_the_first_stage_of_a_rank_syncs_while_another_still_runs():
    schedule = (parse_order("0F0 1F0 1B0 0B0"), parse_order("0F1 1F1 1B1 0B1"))
    syncs = tuple(Sync(what=f"stage {s}", ranks=(0, 1), time=2.0) for s in (0, 1))
    buckets = Buckets(1, ((0,), (1,)))
    ranks, stages = [(0, 1), (0, 1)], [stage(1.0, 3.0)] * 2
    timeline = simulate(schedule, ranks, stages, syncs, **ASKED, buckets=buckets)
    assert [(s.sync, s.start, s.end) for s in timeline.syncs[0]] == [(1, 5, 7), (0, 8, 10)]
    assert exposed_time(timeline.syncs[0], 8.0) == 2.0


@pytest.mark.parametrize("seed", range(200))
def test_one_bucket_is_never_later_than_a_sync_at_the_end_and_more_may_only_help(seed: int):
    step = random_step(random.Random(seed))
    if not step.syncs or len(set(map(len, step.ranks))) > 1:
        return
    stages = tuple((int(sync.what.split()[1]),) for sync in step.syncs)
    makespans = [step.simulate(buckets=Buckets(n, stages)).makespan for n in (1, 2, 4)]
    at_end = step.simulate()
    assert all(makespan <= at_end.makespan for makespan in makespans)
    timeline = step.simulate(buckets=Buckets(4, stages))
    for rank in used_ranks(timeline):
        own = timeline.syncs[rank]
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
