import pytest

from autopart.runtime.job.rank_results import (
    RankRun,
    StepRun,
    last_slices,
    losses_of,
    share_of_core,
    stages_of,
    step_times_of,
)
from autopart.runtime.measuring.clock import MeasuredAction
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.schedules.actions import parse_action
from tests.support.runtime.plans import two_stage_plan


def step(
    loss: float | None, time: float, scale: float, stage: int = 0, core: float | None = None
) -> StepRun:
    """One forward takes 2 s after a wait of 1 s, one backward 4 s after a wait of 3 s.

    Then the last send takes 0.5 s and the gradient sum 0.25 s. Each action had a core for `core`
    seconds. `scale` multiplies all times.
    """
    slices = (
        MeasuredAction(parse_action(f"{stage}F0"), 0.0, 1.0 * scale, 3.0 * scale, core),
        MeasuredAction(parse_action(f"{stage}B0"), 3.0 * scale, 6.0 * scale, 10.0 * scale, core),
    )
    trace = StepTrace(slices, 0.5 * scale, 0.25 * scale, 10.75 * scale)
    return StepRun(loss, trace, time, update_time=0.1 * scale)


RUNS = [
    RankRun((step(None, 90.0, 9.0), step(None, 11.0, 1.0), step(None, 13.0, 1.0)), 100),
    RankRun((step(4.0, 80.0, 9.0, 1), step(3.0, 12.0, 2.0, 1), step(2.0, 12.5, 2.0, 1)), 200),
]


def test_a_step_ends_with_its_last_rank():
    assert step_times_of(RUNS) == (90.0, 12.0, 13.0)


def test_the_loss_is_the_sum_over_the_ranks_that_have_a_share():
    assert losses_of(RUNS) == (4.0, 3.0, 2.0)
    replicas = [RankRun((step(1.5, 1.0, 1.0),), 0), RankRun((step(2.0, 1.0, 1.0),), 0)]
    assert losses_of(replicas) == (3.5,)


def test_a_stage_s_times_exclude_the_first_step_and_waiting():
    first, second = stages_of(two_stage_plan(), RUNS)
    assert (first.forward_time, first.backward_time) == (2.0, 4.0)
    assert (second.forward_time, second.backward_time) == (4.0, 8.0)
    assert first.wait_time == pytest.approx(1.0 + 3.0 + 0.5)
    assert first.busy_time == pytest.approx(10.5 - 4.5)
    assert (first.sync_time, first.update_time) == (0.25, 0.1)
    assert (first.peak_bytes, second.peak_bytes) == (100, 200)


def test_a_single_step_counts_itself():
    only = [RankRun((run.steps[0],), run.peak_bytes) for run in RUNS]
    assert stages_of(two_stage_plan(), only)[0].forward_time == pytest.approx(18.0)


def test_the_share_of_core_time_excludes_the_first_step():
    shared = RankRun((step(None, 1.0, 9.0), step(None, 1.0, 1.0, core=2.25)), 0)
    assert share_of_core([RankRun(shared.steps[1:], 0)]) == pytest.approx(4.5 / 6.0)
    assert share_of_core([shared]) == pytest.approx(4.5 / 6.0)
    assert share_of_core(RUNS) == 1.0, "not counted"
    counted = stages_of(two_stage_plan(), [shared, RankRun(RUNS[1].steps[:2], 0)])
    assert [one.core_time for stage in counted for one in stage.actions] == [2.25, 2.25, None, None]


def test_the_trace_covers_the_last_step():
    assert [(s.action, s.end) for s in last_slices(RUNS[1])] == [("1F0", 6.0), ("1B0", 20.0)]
