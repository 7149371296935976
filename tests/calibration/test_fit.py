"""The fit of stretches, against rows that are made from known ones."""

import numpy as np
import pytest

from autopart.calibration.fit import Row, fit_stretches, rows_needed
from autopart.errors import UsageError
from autopart.records.kernels import KINDS, Shares

TABLE = Shares(products=0.8, attention=0.5, memory=0.8, random=0.25)


def made_rows(count: int, stretches: dict[str, float], noise: float = 0.0) -> list[Row]:
    """Rows whose measured seconds are those of the given stretches, with seeded noise."""
    draws = np.random.default_rng(7)
    rows: list[Row] = []
    for place in range(count):
        parts = tuple(draws.uniform(0.1, 3.0, len(KINDS)))
        seconds = 0.2 + sum(stretches.get(k, 1.0) * a for k, a in zip(KINDS, parts, strict=True))
        measured = float(seconds * (1 + noise * draws.normal()))
        rows.append(Row(f"row {place}", f"row {place}", 0.2, parts, measured))
    return rows


def test_known_paces_come_back() -> None:
    stretches = {"products": 1.1, "memory": 1.4, "random": 0.8, "attention": 1.2}
    found = fit_stretches(made_rows(24, stretches), TABLE)
    assert found.fit.kinds == ("products", "memory", "random", "attention")
    for kind, stretch in stretches.items():
        assert found.stretches[kind] == pytest.approx(stretch, rel=0.03)
        assert getattr(found.shares, kind) == pytest.approx(
            getattr(TABLE, kind) / stretch, rel=0.03
        )
    assert found.fit.held_out_worst < 0.01


def test_the_error_on_held_out_rows_is_that_of_noise() -> None:
    found = fit_stretches(made_rows(24, {"products": 1.3}, noise=0.05), TABLE)
    assert 0.02 < found.fit.mean_error < 0.06
    assert found.fit.mean_error < found.fit.held_out_error < 0.08


@pytest.mark.parametrize(("rows", "kinds"), [(3, 1), (4, 1), (5, 2), (7, 3), (9, 4), (24, 4)])
def test_each_kind_beyond_the_first_takes_two_more_rows(rows: int, kinds: int) -> None:
    assert rows_needed(kinds) <= rows
    assert len(fit_stretches(made_rows(rows, {}), TABLE).fit.kinds) == kinds


def test_too_few_rows_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(UsageError, match="2 rows for a calibration, where 3 are needed"):
        fit_stretches(made_rows(2, {}), TABLE)
    with pytest.raises(UsageError, match="3 rows for 2 kinds of kernels, where 5 are needed"):
        fit_stretches(made_rows(3, {}), TABLE, ("products", "memory"))
    with pytest.raises(UsageError, match="no kernels are called 'tensor'; known: products"):
        fit_stretches(made_rows(5, {}), TABLE, ("tensor",))


def test_a_share_never_passes_the_peak() -> None:
    found = fit_stretches(made_rows(24, {"products": 0.5}), TABLE, ("products",))
    assert found.shares.products == pytest.approx(1.0)
    assert found.stretches["products"] == pytest.approx(0.8)


def test_kinds_that_no_row_has_are_not_fitted() -> None:
    rows = [row._replace(parts=(row.parts[0], 0.0, row.parts[2], 0.0)) for row in made_rows(9, {})]
    assert fit_stretches(rows, TABLE).fit.kinds == ("products", "memory")


def test_rows_without_seconds_are_refused_by_name() -> None:
    rows = made_rows(4, {})
    rows[2] = rows[2]._replace(measured=0.0)
    with pytest.raises(UsageError, match="row 2: measured seconds must be above 0"):
        fit_stretches(rows, TABLE)
