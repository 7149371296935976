"""A witness for comparisons at equal pace: machines whose slowness is known, under a told clock."""

import msgspec
import pytest
import torch

from autopart.fidelity.compare import Fidelity, judge
from autopart.fidelity.pace import compare_pace, notes_on_pace
from autopart.records.pace import Pace
from autopart.records.plan import Plan
from autopart.records.run_result import RankStep, RunResult
from autopart.report.fidelity_table import step_lines
from autopart.report.pace_lines import pace_lines, step_error
from autopart.runtime.measuring.pace import PaceMeter, pace_of
from autopart.simulator.timeline import simulate_with
from tests.runtime.measuring.test_pace import ToldStopwatch
from tests.support.measured_runs import as_predicted
from tests.support.samples import sample_plan

replace = msgspec.structs.replace
CPU = torch.device("cpu")
PIECE = 4e-3
"""Seconds of the fixed work on the machine that was profiled."""


def pace_on(slowness: float, scatter: float = 0.0) -> Pace:
    """The pace that a meter finds on a machine so many times slower; samples scatter by a share."""
    told = [PIECE * slowness * (1.0 + scatter * (number % 2)) for number in range(8)]
    meter = PaceMeter(CPU, ToldStopwatch([time for time in told for _ in range(3)]))
    for _ in told:
        meter.sample()
    found = pace_of(meter.samples, CPU)
    assert found is not None
    return found


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1, 2], ids=["one pipeline", "two replicas"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """A plan whose profile has the pace of a machine of slowness 1."""
    made = sample_plan(num_stages=4, num_replicas=request.param, num_microbatches=12)
    return replace(made, origin=replace(made.origin, pace=pace_on(1.0)))


def run_on(
    plan: Plan, slowness: float, core_share: float = 1.0, paced: float | None = None
) -> RunResult:
    """A run as predicted, on a machine whose every second takes `slowness / core_share` seconds.

    `paced` is the slowness that the fixed work shows, by default `slowness`.
    """
    run, by = as_predicted(plan), slowness / core_share
    pace = pace_on(slowness if paced is None else paced)
    stages = tuple(
        replace(
            stage,
            actions=tuple(
                replace(one, time=by * one.time, core_time=slowness * one.time)
                for one in stage.actions
            ),
            sends=tuple(replace(one, time=by * one.time) for one in stage.sends),
        )
        for stage in run.stages
    )
    timed = ("acting_time", "between_time", "waiting_time", "sync_time", "update_time")
    ranks = tuple(
        replace(
            ran,
            pace=pace,
            core_share=core_share,
            **{name: by * getattr(ran, name) for name in timed},
        )
        for ran in run.ranks
    )
    times = tuple(by * time for time in run.step_times)
    return replace(run, stages=stages, ranks=ranks, step_times=times)


def causes(found: Fidelity) -> dict[str, float]:
    return {one.cause: one.seconds for one in found.causes}


def test_a_machine_that_gets_slower_is_off_by_nothing_at_equal_pace(plan: Plan) -> None:
    found = judge(plan, run_on(plan, 1.3))
    assert found.error == pytest.approx(1 / 1.3 - 1.0)
    assert found.pace is not None and found.pace.slowdown == pytest.approx(1.3)
    assert found.pace.error == pytest.approx(0.0, abs=1e-9)
    assert all(one.error_at_pace == pytest.approx(0.0, abs=1e-9) for one in found.actions)
    assert all(one.error == pytest.approx(1 / 1.3 - 1.0) for one in found.actions)
    told = causes(found)
    assert told.pop("pace") == pytest.approx(0.3 * plan.prediction.step_time)
    assert all(abs(time) < 1e-9 for time in told.values())


def test_cores_that_others_took_are_part_of_the_comparison_and_a_cause_of_their_own(
    plan: Plan,
) -> None:
    found = judge(plan, run_on(plan, 1.3, core_share=0.5))
    assert found.pace is not None and found.pace.core_share == 0.5
    assert found.error == pytest.approx(1 / 2.6 - 1.0)
    assert found.pace.error == pytest.approx(0.0, abs=1e-9)
    told = causes(found)
    assert told["pace"] == pytest.approx(0.3 * plan.prediction.step_time)
    assert told["compute"] == pytest.approx(0.0, abs=1e-9) and told["cores"] > told["pace"]


def test_what_the_pace_does_not_explain_stays_a_difference(plan: Plan) -> None:
    found = judge(plan, run_on(plan, 1.5, paced=1.25))
    assert found.pace is not None
    assert found.pace.error == pytest.approx(1.25 / 1.5 - 1.0)
    assert causes(found)["compute"] > 0.0


def test_each_rank_has_its_own_pace() -> None:
    plan = sample_plan(num_stages=2, num_microbatches=6)
    plan = replace(plan, origin=replace(plan.origin, pace=pace_on(1.0)))
    ranks = tuple(
        replace(ran, pace=pace_on(3.0 if ran.rank == 0 else 1.0))
        for ran in as_predicted(plan).ranks
    )
    found = compare_pace(plan, ranks, plan.prediction.step_time, 1.0)
    first, last = plan.prediction.stages
    names = ("forward_time", "backward_time", "weight_grad_time", "update_time")
    slow = replace(first, **{name: 3.0 * getattr(first, name) for name in (*names, "send_time")})
    syncs = tuple(replace(sync, time=3.0 * sync.time) for sync in plan.prediction.syncs)
    expected = simulate_with(plan, (slow, last), syncs, 2.0 * plan.cluster.action_overhead)
    assert found is not None
    assert found.predicted_step_time == pytest.approx(expected.makespan)
    assert found.slowdown == pytest.approx(2.0)


def test_on_a_gpu_sends_and_syncs_keep_their_seconds(plan: Plan) -> None:
    gpu = [
        replace(ran, pace=replace(pace_on(2.0), threads=None)) for ran in as_predicted(plan).ranks
    ]
    cpu = [replace(ran, pace=pace_on(2.0)) for ran in as_predicted(plan).ranks]
    step = plan.prediction.step_time
    on_gpu, on_cpu = (compare_pace(plan, ranks, step, 1.0) for ranks in (gpu, cpu))
    assert on_gpu is not None and on_gpu.predicted_step_time is not None
    assert on_cpu is not None and on_cpu.predicted_step_time == pytest.approx(2.0 * step)
    assert step < on_gpu.predicted_step_time < 2.0 * step


def test_where_a_pace_is_missing_the_comparison_says_why(plan: Plan) -> None:
    run = run_on(plan, 1.3)
    older = replace(plan, origin=replace(plan.origin, pace=msgspec.UNSET))
    analytic = replace(older, origin=replace(older.origin, method="analytic"))
    for without, why in ((older, "make it again"), (analytic, "the profile is analytic")):
        found = judge(without, run)
        assert found.pace is not None and found.pace.slowdown is None
        assert why in found.pace.unknown and why in pace_lines(found.pace)[0]
        assert "pace" not in causes(found)
        assert "a change of the machine included" in step_lines(found)[0]
    assert judge(plan, as_predicted(plan)).pace is None, "no rank sampled its pace"


def test_the_error_at_equal_pace_stands_beside_the_raw_one(plan: Plan) -> None:
    found = judge(plan, run_on(plan, 1.3, core_share=0.8))
    assert "-38.5%; " in step_lines(found)[0] and "at the run's pace, " in step_lines(found)[0]
    assert pace_lines(found.pace) == [
        "pace: a fixed piece of work took 30.0 % longer than in the profile, and ranks had a core "
        "for 80.0 % of their actions' time"
    ]
    faster = judge(plan, run_on(plan, 0.8)).pace
    assert pace_lines(faster) == [
        "pace: a fixed piece of work took 20.0 % less than in the profile"
    ]
    assert faster is not None
    assert step_error(0.25, faster).startswith("+25.0%; ")


def test_a_machine_that_is_too_unsteady_is_named_once_with_what_to_do(plan: Plan) -> None:
    steady, slow = run_on(plan, 1.1), run_on(plan, 1.4)
    assert notes_on_pace(plan, steady.ranks) == ()
    (said,) = notes_on_pace(plan, slow.ranks)
    assert "another pace during the profile" in said and "profile and run again" in said
    (said,) = notes_on_pace(plan, run_on(plan, 1.1, core_share=0.6).ranks)
    assert "other processes used the cores (ranks had one for 60% of their actions' time)" in said
    wild = [_scattering(ran) for ran in run_on(plan, 1.4, core_share=0.6).ranks]
    (said,) = notes_on_pace(plan, wild)
    assert "its pace varied by 36.7 % in the run" in said and said.count("; ") == 3


def _scattering(ran: RankStep) -> RankStep:
    return replace(ran, pace=pace_on(1.4, scatter=0.45))
