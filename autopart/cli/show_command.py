"""`autopart show`: a plan as tables and a timeline."""

from typing import Annotated

import typer

from autopart.cli.console import print_result, results_console
from autopart.cli.shared_options import AsJson, PlanFile
from autopart.records.plan import load_plan
from autopart.report.memory_table import memory_of_ranks, rank_memory_report
from autopart.report.order_lines import order_lines, orders_summary
from autopart.report.plan_summary import MemorySummary, plan_summary
from autopart.report.plan_table import plan_report, plan_title
from autopart.report.rank_grid import rank_grid_table
from autopart.report.timeline import idle_line, state_line, timeline_text
from autopart.simulator.timeline import simulate_plan

EXAMPLE = "autopart show plan.json"


def command(
    plan: PlanFile,
    memory: Annotated[
        bool, typer.Option("--memory", help="Show the memory of every rank at its peak instead.")
    ] = False,
    orders: Annotated[
        bool,
        typer.Option(
            "--orders",
            help="Show the order of actions of every rank instead, with gathers and reductions of sharded state.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a plan: stages, memory, and one step as a timeline."""
    shown = load_plan(plan)
    console = results_console(as_json=as_json)
    if memory:
        ranks = MemorySummary(plan=str(plan), ranks=memory_of_ranks(shown))
        parts = (plan_title(shown), rank_memory_report(shown))
        print_result(ranks, *parts, as_json=as_json, console=console)
        return
    if orders:
        listed = orders_summary(shown, str(plan))
        lines = order_lines(shown, listed)
        print_result(listed, plan_title(shown), *lines, as_json=as_json, console=console)
        return
    timeline = simulate_plan(shown)
    drawing = timeline_text(shown, timeline, console.width)
    summary = plan_summary(shown, str(plan))
    lines = [line for line in (idle_line(timeline), state_line(shown, timeline)) if line]
    grid = rank_grid_table(shown)
    parts = (plan_report(shown), *(() if grid is None else (grid,)), drawing, *lines)
    print_result(summary, *parts, as_json=as_json, console=console)
