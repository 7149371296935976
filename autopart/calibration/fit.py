"""Stretches of kernels, fitted to measured seconds.

Symbols   y     measured seconds of one row
          c     its predicted seconds that no stretch changes: sends, collectives, fixed costs
          a_k   its predicted seconds in kernels of kind k, at the table's shares
          x_k   the stretch of kind k: its share becomes share / x_k

    minimise  sum over rows ( (c + sum_k x_k a_k) / y - 1 )^2  +  sum_k ( w ln x_k )^2

The second sum keeps stretches near 1 where rows say little about them (ridge regression in the logarithm). Shares stay at most
1 (on a CPU, whose table is an order of magnitude, at most 64), so x_k is at least the table's share over that. Errors on held-out rows come from fits without one group of rows at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.optimize import least_squares

from autopart.errors import UsageError
from autopart.records.calibration import Fit
from autopart.records.kernels import KINDS, Shares
from autopart.text import counted

LEAST_ROWS = 3
"""Rows for one kind. Each further kind needs two more."""
ORDER = ("products", "memory", "random", "attention")
"""The kinds in the order in which they are fitted, as far as rows allow it."""
_RIDGE = 0.1
_LOWEST, _HIGHEST = 1e-3, 1e3


class Row(NamedTuple):
    """One measured figure and its prediction at the table's shares, in seconds."""

    name: str
    """The row in words."""
    group: str
    """Rows of one group are held out together."""
    fixed: float
    """Predicted seconds that no stretch changes."""
    parts: tuple[float, ...]
    """Predicted seconds in each kind of kernels, in the order of `KINDS`."""
    measured: float
    """Measured seconds."""


class Stretches(NamedTuple):
    """The fitted stretches and their errors."""

    stretches: dict[str, float]
    """The stretch of each kind that was fitted."""
    shares: Shares
    """The table's shares with these stretches."""
    fit: Fit
    errors: tuple[float, ...]
    """Predicted over measured seconds minus 1, for each row."""


def most_share(gpu: str) -> float:
    """The largest share that a fit may find: 1 of a datasheet's peak, more of a CPU's order of magnitude."""
    return 64.0 if gpu == "cpu" else 1.0


def fit_stretches(
    rows: Sequence[Row], table: Shares, asked: Sequence[str] = (), most: float = 1.0
) -> Stretches:
    """Fit the stretches of the kinds `asked`, or of as many as the rows allow, with shares of at most `most`.

    Raises UsageError for too few rows, and for rows that are not above 0.
    """
    for row in rows:
        if not row.measured > 0.0:
            raise UsageError(f"{row.name}: measured seconds must be above 0")
    kinds = kinds_to_fit(rows, asked)
    stretches = _fitted(rows, kinds, table, most)
    errors = _errors(rows, kinds, stretches)
    held_out = _held_out_errors(rows, kinds, table, most)
    shares = {
        kind: min(most, getattr(table, kind) / float(stretch))
        for kind, stretch in zip(kinds, stretches, strict=True)
    }
    return Stretches(
        stretches=dict(zip(kinds, map(float, stretches), strict=True)),
        shares=msgspec.structs.replace(table, **shares),
        fit=Fit(
            rows=len(rows),
            kinds=tuple(kinds),
            mean_error=float(np.abs(errors).mean()),
            worst_error=float(np.abs(errors).max()),
            held_out_error=float(np.abs(held_out).mean()),
            held_out_worst=float(np.abs(held_out).max()),
        ),
        errors=tuple(map(float, errors)),
    )


def rows_needed(kinds: int) -> int:
    """Rows that so many kinds need: three for one, and two more for each further kind."""
    return LEAST_ROWS + 2 * (kinds - 1)


def most_kinds(rows: int) -> int:
    """Kinds that so many rows allow."""
    return (rows - LEAST_ROWS) // 2 + 1


def kinds_to_fit(rows: Sequence[Row], asked: Sequence[str] = ()) -> list[str]:
    """The kinds `asked`, or as many as the rows allow among those that take time in them.

    Raises UsageError for too few rows, and for an unknown kind.
    """
    for kind in asked:
        if kind not in KINDS:
            raise UsageError(f"no kernels are called '{kind}'; known: {', '.join(KINDS)}")
    needed = rows_needed(max(1, len(set(asked))))
    if len(rows) < needed:
        what = f"{counted(len(set(asked)), 'kind')} of kernels" if asked else "a calibration"
        raise UsageError(f"{counted(len(rows), 'row')} for {what}, where {needed} are needed")
    used = [k for k in ORDER if any(row.parts[KINDS.index(k)] > 0.0 for row in rows)]
    kinds = [k for k in used if k in asked] if asked else used[: most_kinds(len(rows))]
    if not kinds:
        raise UsageError("no row depends on these kernels: the host's time per operation decides")
    return kinds


def _fitted(rows: Sequence[Row], kinds: Sequence[str], table: Shares, most: float) -> np.ndarray:
    places = [KINDS.index(kind) for kind in kinds]
    measured = np.array([row.measured for row in rows])
    fitted = np.array([[row.parts[p] for p in places] for row in rows]) / measured[:, None]
    rest = np.array([row.fixed + sum(row.parts) for row in rows]) / measured - fitted.sum(1)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([rest + fitted @ np.exp(logs) - 1.0, _RIDGE * logs])

    # A share is at most `most`: a stretch is at least the table's own share divided by it.
    lowest = np.log([max(_LOWEST, getattr(table, kind) / most) for kind in kinds]) - 1e-9
    start = np.zeros(len(kinds))
    found = least_squares(residuals, start, bounds=(lowest, np.full(len(kinds), np.log(_HIGHEST))))
    return np.exp(found.x)


def _errors(rows: Sequence[Row], kinds: Sequence[str], stretches: np.ndarray) -> np.ndarray:
    stretch = dict(zip(kinds, stretches, strict=True))
    predicted = [
        row.fixed + sum(stretch.get(k, 1.0) * a for k, a in zip(KINDS, row.parts, strict=True))
        for row in rows
    ]
    return np.array(predicted) / np.array([row.measured for row in rows]) - 1.0


def _held_out_errors(
    rows: Sequence[Row], kinds: Sequence[str], table: Shares, most: float
) -> np.ndarray:
    """Errors of each group under the stretches of all others; with one group, of each row under the others."""
    names = [row.group for row in rows]
    if len(set(names)) < 2:
        names = [str(place) for place in range(len(rows))]
    found = np.zeros(len(rows))
    for name in set(names):
        out = [place for place, own in enumerate(names) if own == name]
        left = [row for row, own in zip(rows, names, strict=True) if own != name]
        held = [rows[place] for place in out]
        found[out] = _errors(held, kinds, _fitted(left, kinds, table, most))
    return found
