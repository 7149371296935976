import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from autopart.report import columns
from autopart.report.columns import add_text, new_table, sizes, times
from autopart.text import visible
from tests.support.hostile_names import HOSTILE, OBEYED


@pytest.mark.parametrize(
    ("values", "unit", "cells"),
    [
        ([0.5, 0.0123], "ms", ["500.0", "12.3"]),
        ([2e-3, 5e-6], "ms", ["2.00", "0.01"]),
        ([12.0, 3.0], "s", ["12.0", "3.0"]),
        ([4e-5], "µs", ["40.0"]),
        ([0.0, 0.0], "ms", ["0.00", "0.00"]),
        ([], "ms", []),
    ],
)
def test_a_column_of_times_has_the_unit_of_its_largest(
    values: list[float], unit: str, cells: list[str]
) -> None:
    assert times(values) == (unit, cells)


@pytest.mark.parametrize(
    ("values", "unit", "cells"),
    [
        ([3 << 30, 1 << 29], "GiB", ["3.00", "0.50"]),
        ([100 << 20, 1 << 20], "MiB", ["100.0", "1.0"]),
        ([2048, 512], "KiB", ["2.00", "0.50"]),
        ([100, 7], "B", ["100", "7"]),
        ([7, 0], "B", ["7", "0"]),
    ],
)
def test_a_column_of_sizes_has_the_unit_of_its_largest(
    values: list[float], unit: str, cells: list[str]
) -> None:
    assert sizes(values) == (unit, cells)


def test_a_cell_a_title_and_a_caption_are_printed_as_they_are() -> None:
    """On a console that reads markup too, as a user's own may."""
    for name in HOSTILE:
        table = new_table(name, name)
        add_text(table, "layer")
        table.add_row(name)
        console = Console(file=io.StringIO(), width=200)
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert text.count(visible(name).strip()) == 3 and not OBEYED.search(text)


def test_only_two_files_make_texts_and_tables() -> None:
    """Others use `plain` and `new_table`, which never read markup in a name."""
    for path in Path(columns.__file__).parent.glob("*.py"):
        made = re.search(r"\b(?:Text|Table)\(|Text\.from_markup", path.read_text())
        assert not made or path.name in ("columns.py", "timeline.py"), path
