"""Tables with all frameworks that plans are exported to: what each accepts, and how each communicates."""

from rich.table import Table

from autopart.exporters.targets import TARGETS
from autopart.report.columns import add_text, new_table


def target_table() -> Table:
    """One row for each framework: the plans that it accepts."""
    table = new_table("frameworks; none accepts a list of layers to offload")
    for heading in ("--to", "framework", "versions", "schedules", "stages per rank", "recompute"):
        add_text(table, heading)
    for name, target in TARGETS.items():
        table.add_row(
            name,
            target.framework.title,
            ", ".join(target.versions),
            target.schedules,
            target.stages,
            target.recompute,
        )
    return table


def communication_table() -> Table:
    """One row for each framework: how it syncs and sends, in words for `solve`, and its tensor groups."""
    table = new_table("how each syncs and sends")
    for heading in ("--to", "--sync", "--sends", "tensor groups"):
        add_text(table, heading)
    for name, target in TARGETS.items():
        own = target.framework
        table.add_row(name, own.sync, own.sends, own.tensor_groups)
    return table
