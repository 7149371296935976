"""HTML from text: every name is escaped, and every figure has the table behind it."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autopart.text import visible


def escape(text: object) -> str:
    """`text` for HTML: markup is shown, and what a browser or a terminal would obey is written out."""
    return html.escape(visible(text), quote=True)


def json_script(name: str, value: object) -> str:
    """A `script` element with JSON that a page reads, whatever texts are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # `</script>` and `<!--` would end the element or change how it is read.
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{escape(name)}">{safe}</script>'


class Column(NamedTuple):
    """A column's head, and whether its cells are numbers."""

    head: str
    number: bool = True


def table_html(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption. The first cell of each row is its head."""
    heads = "".join(
        f'<th scope="col"{" class=n" if column.number else ""}>{escape(column.head)}</th>'
        for column in columns
    )
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(columns: Sequence[Column], row: Sequence[object]) -> str:
    cells: list[str] = []
    for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
        number = " class=n" if column.number else ""
        text = escape(cell)
        cells.append(
            f"<td{number}>{text}</td>" if place else f'<th scope="row"{number}>{text}</th>'
        )
    return "".join(cells)


class Figure(NamedTuple):
    """One section of the page: a heading, a sentence, a drawing and the table behind it."""

    name: str
    """Its anchor."""
    title: str
    lead: str
    """What it shows, in plain text."""
    drawing: str
    """HTML."""
    table: str = ""
    """HTML; empty where the drawing is a table or a list itself."""


def figure_html(figure: Figure) -> str:
    """The section of a figure."""
    table = ""
    if figure.table:
        table = (
            f'<details id="{figure.name}-table"><summary>Table<span class="visually-hidden"> of the figure '
            f"“{escape(figure.title)}”</span></summary>{figure.table}</details>"
        )
    return (
        f'<section id="{figure.name}" aria-labelledby="{figure.name}-title">'
        f'<h2 id="{figure.name}-title">{escape(figure.title)}</h2>'
        f'<p class="lead">{escape(figure.lead)}</p>{figure.drawing}{table}</section>'
    )


def legend_html(label: str, entries: Iterable[tuple[str, str, str]]) -> str:
    """A legend: the class of each swatch, its name, and what it stands for."""
    items = "".join(
        f'<li title="{escape(meaning or name)}"><span class="swatch {swatch}" aria-hidden="true"></span>{escape(name)}</li>'
        for swatch, name, meaning in entries
    )
    return f'<ul class="legend" aria-label="{escape(label)}">{items}</ul>'


def chart_html(name: str, label: str, height: int) -> str:
    """The place of a chart that the page's script draws; `label` says it to a screen reader."""
    return (
        f'<div class="chart" id="chart-{name}" role="img" aria-label="{escape(label)}" '
        f'style="min-height:{height}px"></div>'
    )
