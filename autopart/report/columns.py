"""Table columns: a number column has one unit, which its head names."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autopart.text import visible
from autopart.units import bytes_unit, time_unit


def plain(text: str) -> Text:
    """A line of text that any console prints as it is: markup, emoji and control characters too."""
    return Text(visible(text))


class PlainTable(Table):
    """A table whose cells are plain text, whatever the console does with markup."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row of cells; see `rich.table.Table.add_row`."""
        super().add_row(*(plain(c) if isinstance(c, str) else c for c in cells), **options)


def new_table(title: str, caption: str | None = None) -> Table:
    """An empty table in our common style, which fits into 80 columns."""
    return PlainTable(
        title=Text(visible(title), style="bold"),
        caption=None if caption is None else plain(caption),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )


def add_text(table: Table, head: str) -> None:
    """Add a text column. Its cells break over lines where the terminal is narrow."""
    table.add_column(head, overflow="fold", vertical="top")


def add_number(table: Table, head: str) -> None:
    """Add a number column. Its cells never break."""
    table.add_column(head, justify="right", no_wrap=True)


def times(values: Sequence[float]) -> tuple[str, list[str]]:
    """The unit and the cells for a column in seconds."""
    unit, scale = time_unit(max(values, default=0.0))
    return unit, _cells(value / scale for value in values)


def sizes(values: Sequence[float]) -> tuple[str, list[str]]:
    """The unit and the cells for a column in bytes."""
    unit, scale = bytes_unit(max(values, default=0.0))
    if unit == "B":
        return unit, [f"{value:.0f}" for value in values]
    return unit, _cells(value / scale for value in values)


def _cells(values: Iterable[float]) -> list[str]:
    kept = list(values)
    # The largest value has at least three digits; small values beside it may round to 0.
    digits = 2 if max(kept, default=0.0) < 10 else 1
    return [f"{value:.{digits}f}" for value in kept]
