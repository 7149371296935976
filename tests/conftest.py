"""What all tests share; processes too, since starting them takes seconds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.runtime.rank_pool import RankPool

# How long an example takes says more about the machine than about the code.
settings.register_profile("autopart", deadline=None)
settings.load_profile("autopart")


@pytest.fixture(scope="session")
def two_ranks() -> Iterator["RankPool"]:
    yield from _pool(2)


@pytest.fixture(scope="session")
def four_ranks() -> Iterator["RankPool"]:
    yield from _pool(4)


def _pool(num_ranks: int) -> Iterator["RankPool"]:
    from tests.runtime.rank_pool import RankPool  # and with it torch, which not all tests need

    pool = RankPool(num_ranks)
    yield pool
    pool.close()
