"""Seeds for random instances: the first in the quick suite, more in the slow tests, the rest in a script."""

import pytest


def seeds(quick: int, total: int, slow: int | None = None) -> list[object]:
    """Values for `parametrize`, 0 to `total` - 1.

    Seeds from `quick` on are marked slow. Seeds from `slow` on, where it is given, are marked long.
    """

    def value(n: int) -> object:
        if n < quick:
            return n
        long = slow is not None and n >= slow
        return pytest.param(n, marks=pytest.mark.long if long else pytest.mark.slow)

    return [value(n) for n in range(total)]
