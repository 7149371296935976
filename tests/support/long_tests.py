"""Cases that only `scripts/check_seeds` runs, beside those of the slow tests."""

import pytest


def long_tests(*values: object) -> list[object]:
    """Values for `parametrize`, marked long."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]
