"""The rates of zero bubble's paper, from our own schedules and orders."""

import pytest

from tests.support.scripts import load_script
from tests.support.shared_data import DATA, needs_data

pytestmark = needs_data


@pytest.mark.slow
@pytest.mark.timeout(600)  # some 10 s of processor time; a busy machine takes longer
@pytest.mark.parametrize(
    ("column", "count"),
    [
        ("ZB-2p", 24),
        *(
            pytest.param(column, count, marks=pytest.mark.long)
            for column, count in [("ZB-1p", 24), ("ZB-2p", 32)]
        ),
    ],
)
def test_own_orders_reach_the_paper_s_rate_within_its_memory(column: str, count: int):
    """No rate of theirs is lower by more than 0.001, and our bound lies below both."""
    script = load_script("measure_zero_bubble")
    (cell,) = [
        cell
        for cell in script.cells(DATA)
        if (cell.model, cell.column, cell.microbatches) == ("1.5B", column, count)
    ]
    found = script.measured(cell, actions=400_000)
    assert found.least - 1e-9 <= found.rate <= cell.rate + 0.001


def test_named_schedules_have_the_paper_s_rates():
    script = load_script("measure_zero_bubble")
    few = [cell for cell in script.cells(DATA) if cell.model == "6.2B" and cell.microbatches == 24]
    rates = {
        cell.column: script.measured(cell, 0).rate for cell in few if cell.column in script.NAMED
    }
    for cell in few:
        if cell.column in ("1F1B", "ZB-H1", "ZB-H2"):
            assert rates[cell.column] == pytest.approx(cell.rate, abs=1e-4)
    assert set(rates) == set(script.NAMED)
