"""A table with all frameworks that plans are exported to, and the settings that each accepts."""

from rich.table import Table

from autopart.exporters.targets import TARGETS
from autopart.report.columns import add_text, new_table


def target_table() -> Table:
    """One row for each framework."""
    table = new_table("frameworks; none accepts a list of layers to offload")
    for heading in (
        "--to",
        "framework",
        "versions",
        "schedules",
        "stages per rank",
        "recompute",
        "--sync",
        "--sends",
    ):
        add_text(table, heading)
    for name, target in TARGETS.items():
        table.add_row(
            name,
            target.title,
            ", ".join(target.versions),
            target.schedules,
            target.stages,
            target.recompute,
            target.sync,
            target.sends,
        )
    return table
