import pytest

from autopart.report.columns import sizes, times


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
