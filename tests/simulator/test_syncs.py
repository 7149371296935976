"""Gradient syncs after the last actions."""

import random

import pytest

from autopart.records.prediction import Sync
from autopart.simulator.syncs import after_syncs, syncs_at_end


def test_a_sync_waits_for_the_earlier_syncs_of_all_its_ranks():
    syncs = [Sync(what=f"stage {s}", ranks=(s, s + 1), time=2.0) for s in (0, 1)]
    slices = syncs_at_end([1.0, 4.0, 0.0], syncs)
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
    for rank, own in enumerate(syncs_at_end(free, syncs)):
        assert ends[rank] == (own[-1].end if own else free[rank])
