"""Seeds for random instances: the first in the quick suite, more in the slow tests, the rest in a script."""

import pytest


def seeds(quick: int, total: int, slow: int | None = None) -> list[object]:
    """Values for `parametrize`, 0 to `total` - 1.

    Seeds from `quick` on are marked slow, and from `slow` on long: without it, five sixths of them are long.
    """
    slow = quick + -(-(total - quick) // 6) if slow is None else slow

    def value(n: int) -> object:
        if n < quick:
            return n
        return pytest.param(n, marks=pytest.mark.slow if n < slow else pytest.mark.long)

    return [value(n) for n in range(total)]
