"""Seeds for random instances: the first in the quick suite, more in the slow tests, the rest in a script."""

import pytest


def seeds(quick: int, slow: int, total: int | None = None) -> list[object]:
    """Values for `parametrize`, 0 to `total` - 1 (`slow` - 1 without it).

    Seeds from `quick` on are marked slow, seeds from `slow` on are marked long.
    """
    marks = (
        () if n < quick else pytest.mark.slow if n < slow else pytest.mark.long
        for n in range(total or slow)
    )
    return [n if not mark else pytest.param(n, marks=mark) for n, mark in enumerate(marks)]
