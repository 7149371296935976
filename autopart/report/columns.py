"""Numbers in table columns: one unit for a whole column, named in its head."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from autopart.units import bytes_unit, time_unit


def new_table(title: str, caption: str | None = None) -> Table:
    """An empty table in the one style of all tables: narrow enough for 80 columns."""
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="",
    )


def add_text(table: Table, head: str) -> None:
    """A column of words, which breaks over lines where the terminal is narrow."""
    table.add_column(head, overflow="fold", vertical="top")


def add_number(table: Table, head: str) -> None:
    """A column of numbers, which never breaks."""
    table.add_column(head, justify="right", no_wrap=True)


def times(values: Sequence[float]) -> tuple[str, list[str]]:
    """A column of seconds: its unit, and its cells."""
    unit, scale = time_unit(max(values, default=0.0))
    return unit, _cells(value / scale for value in values)


def sizes(values: Sequence[float]) -> tuple[str, list[str]]:
    """A column of bytes: its unit, and its cells."""
    unit, scale = bytes_unit(max(values, default=0.0))
    if unit == "B":
        return unit, [f"{value:.0f}" for value in values]
    return unit, _cells(value / scale for value in values)


def _cells(values: Iterable[float]) -> list[str]:
    kept = list(values)
    digits = 2 if max(kept, default=0.0) < 10 else 1
    return [f"{value:.{digits}f}" for value in kept]
