"""A simulated step and the checks of a plan, on the terminal."""

from collections.abc import Sequence

from rich.table import Table

from autopart.certificate import Check
from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.report.names import ranks_label
from autopart.report.summary import SimulateSummary
from autopart.units import format_share, format_time


def rank_table(step: SimulateSummary) -> Table:
    """One row a rank: where its time goes, and what it holds at its peak."""
    ranks = step.ranks
    columns = [
        ("busy", times([rank.busy_time for rank in ranks])),
        ("sync", times([rank.sync_time for rank in ranks])),
        ("update", times([rank.update_time for rank in ranks])),
        ("idle", times([rank.idle_time for rank in ranks])),
    ]
    peak_unit, peaks = sizes([rank.peak_bytes for rank in ranks])
    figures = f"makespan {format_time(step.makespan)}, bubble {format_share(step.bubble)}"
    table = new_table(f"one step of {step.plan}: {figures}")
    add_number(table, "rank")
    add_text(table, "stage")
    for head, (unit, _) in columns:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "idle\n%")
    add_number(table, "in\nflight")
    add_number(table, f"peak\n{peak_unit}")
    for place, rank in enumerate(ranks):
        table.add_row(
            str(rank.rank),
            ranks_label(rank.stages),
            *(cells[place] for _, (_, cells) in columns),
            f"{100 * rank.idle_time / step.makespan:.1f}" if step.makespan else "0.0",
            str(rank.in_flight),
            peaks[place],
        )
    return table


def check_table(checks: Sequence[Check], title: str) -> Table:
    """One row a check: passed or failed, and what was found."""
    table = new_table(title)
    add_text(table, "check")
    add_text(table, "")
    add_text(table, "found")
    for check in checks:
        table.add_row(check.name, "ok" if check.passed else "FAILED", check.detail)
    return table
