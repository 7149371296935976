"""Seeds for random instances: the first in the quick suite, all in the slow tests."""

import pytest


def seeds(quick: int, total: int) -> list[object]:
    """Values for `parametrize`, 0 to `total` - 1; seeds from `quick` on are marked slow."""
    return [n if n < quick else pytest.param(n, marks=pytest.mark.slow) for n in range(total)]
