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
    """One row for each framework: how it syncs and sends, in words for `solve`, and its rank groups."""
    table = new_table("how each syncs and sends, and its rank groups")
    headings = ("--to", "--sync", "--sends", "tensor groups", "other degrees", "sharded state")
    for heading in headings:
        add_text(table, heading)
    for name, target in TARGETS.items():
        own = target.framework
        degrees = ["context"] * own.context + ["expert"] * own.expert
        kinds = ", ".join(target.sharded_state)
        row = (own.sync, own.sends, own.tensor_groups, ", ".join(degrees) or "-", kinds or "-")
        table.add_row(name, *row)
    return table
