"""`autopart simulate`: run a plan's step on paper."""

from autopart.cli.console import print_result
from autopart.cli.options import AsJson, PlanFile
from autopart.plan import load_plan
from autopart.report.step_table import rank_table
from autopart.report.summary import simulate_summary
from autopart.simulator import simulate_plan

EXAMPLE = "autopart simulate plan.json --json"


def command(plan: PlanFile, as_json: AsJson = False) -> None:
    """Run one step on paper: makespan, bubble, peak of each rank."""
    shown = load_plan(plan)
    summary = simulate_summary(shown, simulate_plan(shown), str(plan))
    print_result(summary, rank_table(summary), as_json=as_json)
