from typing import Any

import msgspec
import pytest

from autopart.errors import PlanError
from autopart.fidelity.run_of_plan import check_run_of_plan
from autopart.records.run_result import AsynchronousRun, RunResult
from tests.support.measured_runs import as_predicted
from tests.support.samples import sample_plan

PLAN = sample_plan()
RUN = as_predicted(PLAN)
STALE = AsynchronousRun(
    schedule="pipedream",
    updates=1,
    microbatches_per_update=1,
    versions=(1, 1),
    predicted_versions=(1, 1),
    predicted_period=1.0,
    predicted_peak_bytes=(1, 1),
)


def test_a_plans_own_run_passes() -> None:
    check_run_of_plan(PLAN, RUN, "run.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other.py"}, "a run of the model 'other.py'"),
        ({"num_microbatches": 5}, "5 microbatches where this one has 4"),
        ({"microbatch_size": 1}, "1 sample where this one has 2"),
        ({"stages": RUN.stages[:1]}, "1 stage where this one has 2"),
        ({"stages": RUN.stages[::-1]}, "stage 0 on other ranks"),
        ({"trace": RUN.trace[:1]}, "traces of 1 rank"),
        ({"asynchronous": STALE}, "an asynchronous run (pipedream)"),
    ],
)
def test_a_run_of_another_plan_is_refused(changes: dict[str, Any], said: str) -> None:
    other: RunResult = msgspec.structs.replace(RUN, **changes)
    with pytest.raises(PlanError) as told:
        check_run_of_plan(PLAN, other, "run.json")
    assert str(told.value).startswith("run.json: ") and said in str(told.value)


def test_a_run_of_the_same_shape_with_another_prediction_is_refused() -> None:
    stage = RUN.stages[1]
    predicted = msgspec.structs.replace(stage.predicted, forward_time=9.0)
    stages = (RUN.stages[0], msgspec.structs.replace(stage, predicted=predicted))
    with pytest.raises(PlanError, match="another prediction for stage 1"):
        check_run_of_plan(PLAN, msgspec.structs.replace(RUN, stages=stages), "run.json")
