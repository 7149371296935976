"""Gradient syncs after the last actions, and beside them."""

import random

import msgspec
import pytest

from autopart.records.prediction import Sync, SyncParts
from autopart.schedules.actions import parse_order
from autopart.simulator.costs import StageTimes, SyncTime
from autopart.simulator.syncs import after_syncs, sync_slices
from autopart.simulator.timeline import Timeline, simulate


def test_a_sync_waits_for_the_earlier_syncs_of_all_its_ranks():
    syncs = [Sync(what=f"stage {s}", ranks=(s, s + 1), time=2.0) for s in (0, 1)]
    slices = sync_slices([1.0, 4.0, 0.0], syncs)
    assert slices == [[(0, 4.0, 6.0)], [(0, 4.0, 6.0), (1, 6.0, 8.0)], [(1, 6.0, 8.0)]]


@pytest.mark.parametrize("seed", range(50))
def test_the_end_of_syncs_equals_their_end_for_many_partitions(seed: int):
    rng = random.Random(seed)
    free = [float(rng.randint(0, 9)) for _ in range(5)]
    syncs = [
        Sync(
            what="tied",
            ranks=tuple(rng.sample(range(5), rng.randint(2, 4))),
            time=rng.randint(0, 4),
        )
        for _ in range(4)
    ]
    ends = after_syncs(free, syncs, max)
    for rank, own in enumerate(sync_slices(free, syncs)):
        assert ends[rank] == (own[-1].end if own else free[rank])


def parts(**seconds: float) -> SyncParts:
    """The parts of stage 0's sync; those not named take no time."""
    none = dict.fromkeys(
        ("early_time", "after_backward", "after_weights", "slows_backward", "slows_weights"), 0.0
    )
    fields = {"stage": 0, "buckets": 2.0, "gather_time": 0.0, "gather_wait": 0.0}
    return msgspec.convert(fields | none | seconds, SyncParts)


def stepped(own: SyncParts, *, split: bool = False) -> Timeline:
    """One stage on two ranks, one microbatch each: F 1 s, B 4 s of which W 3 s, update 10 s."""
    orders = ["0F0 0I0 0W0" if split else "0F0 0B0", "0F1 0B1"]
    stage = StageTimes(1.0, 4.0, 0.0, 0.0, 10.0, weight_grad_time=3.0)
    return simulate(
        tuple(map(parse_order, orders)),
        ((0, 1),),
        [stage],
        [SyncTime((0, 1), 99.0, own)],
        action_overhead=0.0,
        sends_overlap=True,
    )


def test_a_sync_beside_the_last_backward_ends_its_exposed_seconds_after_it():
    own = parts(early_time=5.0, after_backward=2.0, after_weights=3.0)
    assert stepped(own).sync_end == (7.0, 7.0)
    # One rank ends with W, behind which less is hidden.
    assert stepped(own, split=True).sync_end == (8.0, 8.0)


def test_compute_beside_a_sync_takes_longer():
    own = parts(early_time=5.0, after_backward=2.0, slows_backward=0.5)
    assert stepped(own).times.end[1] == 5.5
    assert stepped(own).makespan == 17.5


def test_a_late_part_follows_and_a_gather_delays_the_first_forward():
    own = parts(early_time=5.0, after_backward=2.0, late_time=1.0, gather_wait=0.25)
    timeline = stepped(own)
    assert timeline.times.start[0] == 0.25
    assert timeline.syncs[0] == ((0, 5.25, 7.25), (0, 7.25, 8.25))
    assert timeline.makespan == 18.25


def test_syncs_of_one_rank_go_out_one_after_the_other_the_later_stage_first():
    orders = ["0F0 1F0 1B0 0B0", "0F1 1F1 1B1 0B1"]
    stage = StageTimes(1.0, 1.0, 0.0, 0.0, 0.0)
    later = msgspec.structs.replace(parts(early_time=9.0, after_backward=9.0), stage=1)
    first = parts(early_time=2.0, after_backward=1.0)
    timeline = simulate(
        tuple(map(parse_order, orders)),
        ((0, 1), (0, 1)),
        [stage, stage],
        [SyncTime((0, 1), 2.0, first), SyncTime((0, 1), 9.0, later)],
        action_overhead=0.0,
        sends_overlap=True,
    )
    # Stage 1's last backward ends at 3 s. Its sync ends at 12 s, and then stage 0's takes 2 s.
    assert timeline.sync_end == (14.0, 14.0)
