"""The frameworks that plans are exported to, and what each can be told, as a table."""

from rich.table import Table

from autopart.exporters import TARGETS
from autopart.report.columns import add_text, new_table


def target_table() -> Table:
    """One row a framework."""
    table = new_table("frameworks; none can be told which layers to offload")
    for heading in ("--to", "framework", "versions", "schedules", "stages a rank", "recompute"):
        add_text(table, heading)
    for name, target in TARGETS.items():
        table.add_row(
            name,
            target.title,
            ", ".join(target.versions),
            target.schedules,
            target.stages,
            target.recompute,
        )
    return table
