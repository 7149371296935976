"""Cases that only `scripts/check_seeds` runs, beside those of the slow tests."""

from collections.abc import Collection, Iterable

import pytest


def long_tests(*values: object) -> list[object]:
    """Values for `parametrize`, marked long."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


def long_except(values: Iterable[str], in_ci: Collection[str]) -> list[object]:
    """Values for `parametrize`; those that `in_ci` lacks are marked long."""
    return [value if value in in_ci else long_tests(value)[0] for value in values]
