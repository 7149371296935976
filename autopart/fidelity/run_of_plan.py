"""Whether a run was made of a plan."""

from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.text import counted


def check_run_of_plan(plan: Plan, run: RunResult, where: str) -> None:
    """Raise PlanError where the run in the file `where` is of another plan, or has no trace of its steps."""
    advice = "give the plan that was run, or run this one with 'autopart run --json'"
    if run.model != plan.origin.model:
        raise PlanError(
            f"{where}: a run of the model '{run.model}', and the plan is for '{plan.origin.model}'; {advice}"
        )
    if run.asynchronous is not None:
        raise PlanError(
            f"{where}: an asynchronous run ({run.asynchronous.schedule}), which follows no plan's orders; {advice}"
        )
    counts = (
        (run.num_microbatches, plan.num_microbatches, "microbatch"),
        (run.microbatch_size, plan.microbatch_size, "sample"),
        (len(run.stages), len(plan.stages), "stage"),
    )
    for ran, planned, what in counts:
        if ran != planned:
            raise PlanError(
                f"{where}: a run of another plan, with {counted(ran, what)} where this one has {planned}; {advice}"
            )
    for place, (ran, stage) in enumerate(zip(run.stages, plan.stages, strict=True)):
        if ran.ranks != stage.ranks:
            raise PlanError(
                f"{where}: a run of another plan, with stage {place} on other ranks; {advice}"
            )
        if ran.predicted != plan.prediction.stages[place]:
            raise PlanError(
                f"{where}: a run of another plan, with another prediction for stage {place}; {advice}"
            )
    if len(run.trace) != len(plan.orders) or len(run.ranks) > len(plan.orders):
        raise PlanError(
            f"{where}: it has traces of {counted(len(run.trace), 'rank')}, and the plan has {len(plan.orders)}; {advice}"
        )
