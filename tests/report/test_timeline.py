import itertools

import pytest

from autopart.records.plan import stage_ranks
from autopart.report.timeline import MOST_RANKS, timeline_text
from autopart.schedules.actions import parse_action
from autopart.schedules.encoding import encode
from autopart.simulator.clock import Times
from autopart.simulator.syncs import SyncSlice
from autopart.simulator.timeline import Slice, Timeline, simulate_plan
from tests.support.samples import sample_plan


def _timeline(*ranks: str, makespan: float, sync_end: float, rank_end: float) -> Timeline:
    """Slices written as `0F0:0-4`; every rank syncs and ends at the same time."""
    slices = [list(map(_slice, rank.split())) for rank in ranks]
    actions = encode(tuple(tuple(s.action for s in own) for own in slices), len(ranks))
    flat = list(itertools.chain(*slices))
    ends = [s.end for s in flat]
    times = Times([s.start for s in flat], ends, ends, ends)
    return Timeline(
        actions=actions,
        times=times,
        syncs=tuple((SyncSlice(0, own[-1].end, sync_end),) for own in slices),
        sync_end=(sync_end,) * len(ranks),
        rank_end=(rank_end,) * len(ranks),
        makespan=makespan,
        bubble=0.0,
        in_flight=(1,) * len(ranks),
    )


def _slice(text: str) -> Slice:
    action, _, times = text.partition(":")
    start, _, end = times.partition("-")
    return Slice(parse_action(action), float(start), float(end))


def test_wide_actions_carry_their_names() -> None:
    timeline = _timeline(
        "0F0:0-5 0F1:5-10 0B0:21-30 0B1:39-48",
        "1F0:5-10 1B0:10-19 1F1:20-25 1B1:25-34",
        makespan=52,
        sync_end=50,
        rank_end=52,
    )
    lines = timeline_text(sample_plan(), timeline, width=8 + 52).plain.splitlines()
    assert lines == [
        "rank 0  0F0- 0F1- ...........0B0----- .........0B1----- ~~++",
        "rank 1  .....1F0- 1B0----- .1F1- 1B1----- ~~~~~~~~~~~~~~~~++",
        "one column is 1.00 s",
        "F forward, B backward, ~ gradient sync, + optimizer, . idle",
    ]


def test_narrow_actions_are_letters_that_tell_neighbours_apart() -> None:
    timeline = _timeline(
        "0F0:0-2 0F1:2-4 0B0:8-11 0B1:11-14", makespan=14, sync_end=14, rank_end=14
    )
    line = timeline_text(sample_plan(), timeline, width=8 + 14).plain.splitlines()[0]
    assert line == "rank 0  FFff....BBBbbb"


@pytest.mark.slow
def test_every_line_fits_the_given_width() -> None:
    plan = sample_plan(num_stages=4, num_replicas=2, num_microbatches=64)
    for width in (40, 80, 200):
        text = timeline_text(plan, simulate_plan(plan), width).plain
        ranks = [line for line in text.splitlines() if line.startswith("rank ")]
        assert len(ranks) == 8
        assert {len(line) for line in ranks} == {width}


def test_many_ranks_are_drawn_as_one_rank_per_stage() -> None:
    plan = sample_plan(num_stages=2, num_replicas=MOST_RANKS, num_microbatches=4 * MOST_RANKS)
    text = timeline_text(plan, simulate_plan(plan), 80).plain
    drawn = [line.split()[1] for line in text.splitlines() if line.startswith("rank ")]
    assert drawn == [str(min(ranks)) for ranks in stage_ranks(plan)]
    assert f"one rank per stage is drawn, of {2 * MOST_RANKS} ranks" in text


def test_a_step_that_takes_no_time_is_still_drawn() -> None:
    timeline = _timeline("0F0:0-0", makespan=0, sync_end=0, rank_end=0)
    assert timeline_text(sample_plan(), timeline, 20).plain.startswith("rank 0  ............\n")


def test_an_action_without_any_time_has_no_name_beside_named_ones() -> None:
    timeline = _timeline(
        "0F0:0-9 0F1:9-9 0B0:9-20 0B1:20-20", makespan=20, sync_end=20, rank_end=20
    )
    line = timeline_text(sample_plan(), timeline, width=8 + 40).plain.splitlines()[0]
    assert "0B0-" in line and "0B1" not in line and len(line) == 8 + 40
