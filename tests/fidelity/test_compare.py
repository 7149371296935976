import msgspec
import pytest

from autopart.errors import RunError
from autopart.fidelity.compare import RankParts, check_within, judge, with_stages
from autopart.records.plan import Plan
from autopart.records.run_result import OneDeviceResult, RunResult
from tests.support.measured_runs import as_predicted, causes_of
from tests.support.samples import sample_plan

replace = msgspec.structs.replace


@pytest.fixture(params=[1, 2], ids=["one pipeline", "two replicas"])
def plan(request: pytest.FixtureRequest) -> Plan:
    made = sample_plan(num_stages=4, num_replicas=request.param, num_microbatches=12)
    return replace(made, cluster=replace(made.cluster, action_overhead=1e-4))


@pytest.fixture
def run(plan: Plan) -> RunResult:
    """As the plan predicts, once the fixed cost of an action is part of the prediction."""
    return as_predicted(plan)


def test_a_run_as_predicted_is_off_by_nothing(plan: Plan, run: RunResult) -> None:
    found = judge(replace(plan, prediction=replace(plan.prediction, step_time=run.step_time)), run)
    assert found.error == 0.0 and found.step_time == run.step_time
    assert all(one.error == 0.0 for one in (*found.actions, *found.sends))
    assert all(one.seconds == pytest.approx(0.0, abs=1e-12) for one in found.causes)
    for rank in found.ranks:
        assert rank.predicted is not None and rank.measured is not None
        for name in RankParts.__struct_fields__:
            expected = getattr(rank.predicted, name)
            assert getattr(rank.measured, name) == pytest.approx(expected, abs=1e-9)


def test_a_plan_with_other_stages_has_the_step_that_they_make(plan: Plan, run: RunResult) -> None:
    # The fixture's fixed cost of an action is no part of the prediction yet.
    assert run.step_time > plan.prediction.step_time
    again = with_stages(plan, plan.prediction.stages).prediction
    assert again.step_time == pytest.approx(run.step_time)
    faster = tuple(replace(stage, forward_time=0.0) for stage in plan.prediction.stages)
    assert with_stages(plan, faster).prediction.step_time < again.step_time


@pytest.mark.slow
def test_the_parts_of_every_rank_add_up_to_the_step(plan: Plan, run: RunResult) -> None:
    for rank in judge(plan, run).ranks:
        for parts in (rank.predicted, rank.measured):
            assert parts is not None
            total = sum(getattr(parts, name) for name in RankParts.__struct_fields__)
            assert total == pytest.approx(run.step_time, rel=1e-9)


@pytest.mark.slow
def test_causes_add_up_to_the_difference_whatever_was_measured(plan: Plan, run: RunResult) -> None:
    slower = replace(run, step_times=(9.0, 2.0), stages=_stages(run, 1.3, 2.0))
    assert sum(causes_of(plan, slower).values()) == pytest.approx(2.0 - plan.prediction.step_time)


@pytest.mark.slow
def test_slower_actions_alone_are_told_as_compute(plan: Plan, run: RunResult) -> None:
    assert _only_cause(plan, replace(run, stages=_stages(run, actions=1.5)), run) == "compute"


@pytest.mark.slow
def test_what_others_had_of_the_core_is_told_apart(plan: Plan, run: RunResult) -> None:
    disturbed = tuple(
        replace(
            stage,
            actions=tuple(
                replace(one, time=2 * one.time, core_time=one.time) for one in stage.actions
            ),
        )
        for stage in run.stages
    )
    assert _only_cause(plan, replace(run, stages=disturbed), run) == "cores"


@pytest.mark.slow
def test_slower_messages_alone_are_told_as_sends(plan: Plan, run: RunResult) -> None:
    assert _only_cause(plan, replace(run, stages=_stages(run, sends=50.0)), run) == "sends"


@pytest.mark.slow
def test_more_between_actions_alone_is_told_as_overhead(plan: Plan, run: RunResult) -> None:
    ranks = tuple(replace(ran, between_time=10 * ran.between_time) for ran in run.ranks)
    assert _only_cause(plan, replace(run, ranks=ranks), run) == "overhead"


@pytest.mark.slow
def test_slower_updates_alone_are_told_as_updates(plan: Plan, run: RunResult) -> None:
    ranks = tuple(replace(ran, update_time=0.1) for ran in run.ranks)
    assert _only_cause(plan, replace(run, ranks=ranks), run) == "updates"


@pytest.mark.slow
def test_slower_sums_alone_are_told_as_syncs(plan: Plan, run: RunResult) -> None:
    assert plan.prediction.syncs, "embedding and head are tied"
    ranks = tuple(replace(ran, sync_time=ran.sync_time + 0.1) for ran in run.ranks)
    assert _only_cause(plan, replace(run, ranks=ranks), run) == "syncs"


@pytest.mark.slow
def test_bytes_are_compared_with_the_prediction_without_the_reserve(
    plan: Plan, run: RunResult
) -> None:
    stages = tuple(
        replace(stage, memory=replace(stage.memory, reserve=1 << 20))
        for stage in plan.prediction.stages
    )
    reserving = replace(plan, prediction=replace(plan.prediction, stages=stages))
    for rank in judge(reserving, run).ranks:
        assert rank.measured_bytes is not None
        assert rank.predicted_bytes == rank.measured_bytes - (1 << 20)


@pytest.mark.slow
def test_beyond_the_tolerance_the_first_thing_that_is_off_is_named(
    plan: Plan, run: RunResult
) -> None:
    exact = replace(plan, prediction=replace(plan.prediction, step_time=run.step_time))
    check_within(judge(exact, run), 0.0)
    with pytest.raises(RunError, match=r"prediction of the step is off by -33.3%, more than 5.0%"):
        check_within(judge(exact, replace(run, step_times=(1.5 * run.step_time,))), 0.05)
    fuller = tuple(replace(ran, tensor_bytes=2 * (ran.tensor_bytes or 0)) for ran in run.ranks)
    with pytest.raises(RunError, match=r"rank 0 used .* \(-50.0%, more than 5.0% off\)"):
        check_within(judge(exact, replace(run, ranks=fuller)), 0.05)


def test_of_ranks_that_ran_alone_only_their_own_times_are_judged(
    plan: Plan, run: RunResult
) -> None:
    alone = OneDeviceResult(
        model="model.py",
        device="cpu",
        dtype="float32",
        optimizer="adamw",
        steps=2,
        stages=_stages(run, actions=2.0),
        ranks=run.ranks,
        memory="by hand",
        trace=run.trace,
    )
    found = judge(plan, alone)
    assert (found.step_time, found.error, found.one_device) == (None, None, True)
    assert {one.cause for one in found.causes} == {"compute", "cores", "updates"}
    assert found.resimulated_step_time > 1.8 * plan.prediction.step_time
    assert all(rank.predicted is None and rank.measured_bytes for rank in found.ranks)
    with pytest.raises(RunError, match=r"prediction of F on stage 0 is off by -50.0%"):
        check_within(found, 0.1)


def _stages(run: RunResult, actions: float = 1.0, sends: float = 1.0):
    """The stages with their actions and messages slower by a factor."""
    return tuple(
        replace(
            stage,
            actions=tuple(replace(one, time=actions * one.time) for one in stage.actions),
            sends=tuple(replace(one, time=sends * one.time) for one in stage.sends),
        )
        for stage in run.stages
    )


def _only_cause(plan: Plan, slower: RunResult, run: RunResult) -> str:
    """The one cause that adds anything to the predicted step."""
    exact = replace(plan, prediction=replace(plan.prediction, step_time=run.step_time))
    causes = causes_of(exact, replace(slower, step_times=(9.0, 9.0)))
    (found,) = [c for c, time in causes.items() if c != "other" and abs(time) > 1e-9]
    assert causes[found] > 0.0  # type: ignore[index]
    return found
