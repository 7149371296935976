"""`autopart show`: a plan as tables and a timeline."""

from autopart.cli.console import print_result, results_console
from autopart.cli.options import AsJson, PlanFile
from autopart.plan import load_plan
from autopart.report.plan_table import plan_report
from autopart.report.summary import plan_summary
from autopart.report.timeline import idle_line, timeline_text
from autopart.simulator import simulate_plan

EXAMPLE = "autopart show plan.json"


def command(plan: PlanFile, as_json: AsJson = False) -> None:
    """Show a plan: stages, memory, and one step as a timeline."""
    shown = load_plan(plan)
    console = results_console(as_json=as_json)
    timeline = simulate_plan(shown)
    drawing = timeline_text(shown, timeline, console.width)
    summary = plan_summary(shown, str(plan))
    print_result(
        summary, plan_report(shown), drawing, idle_line(timeline), as_json=as_json, console=console
    )
