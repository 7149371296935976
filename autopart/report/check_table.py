"""Plan checks on the terminal."""

from collections.abc import Sequence

from rich.table import Table

from autopart.records.check import Check
from autopart.report.columns import add_text, new_table


def check_table(checks: Sequence[Check], title: str) -> Table:
    """One row for each check: passed or failed, and the finding."""
    table = new_table(title)
    add_text(table, "check")
    add_text(table, "")
    add_text(table, "found")
    for check in checks:
        table.add_row(check.name, "ok" if check.passed else "FAILED", check.detail)
    return table
