"""The findings of `autopart doctor` on the terminal and as a document."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.report.columns import add_text, new_table


class FindingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    subject: str
    """What it is, in a word or two."""
    state: str
    """`ok`, `note` (something that some users need is missing) or `broken` (plans cannot run here)."""
    found: str
    """What was found."""
    advice: str
    """What to do; empty where nothing needs to be done."""


class DoctorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart doctor --json` prints."""

    works: bool
    """Whether nothing is broken."""
    findings: tuple[FindingSummary, ...]
    """Everything that was looked at."""


def doctor_table(findings: Sequence[FindingSummary]) -> Table:
    """One row for each finding, with what to do."""
    table = new_table("this machine and this folder")
    add_text(table, "")
    add_text(table, "")
    add_text(table, "found")
    for one in findings:
        table.add_row(
            one.subject, one.state, f"{one.found}; {one.advice}" if one.advice else one.found
        )
    return table
