"""Fixtures that all tests share, among them ranks: their start takes seconds."""

import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.runtime.rank_pool import RankPool

# No deadline: an example's time depends on the machine more than on the code.
settings.register_profile("autopart", deadline=None)
settings.load_profile("autopart")

# Jobs in the background of a shell ignore these signals, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with their own time limit run first: they take longest, and no process waits for one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    """No test leaves torch's default process group to the next one, which could not make its own."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        pytest.fail("the test leaves torch's default process group in this process")


@pytest.fixture
def processor_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits count this process's processor seconds, which a busy machine does not change."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator["RankPool"]:
    yield from _pool(2)


@pytest.fixture(scope="session")
def three_ranks() -> Iterator["RankPool"]:
    yield from _pool(3)


@pytest.fixture(scope="session")
def four_ranks() -> Iterator["RankPool"]:
    yield from _pool(4)


def _pool(num_ranks: int) -> Iterator["RankPool"]:
    from tests.support.runtime.rank_pool import (
        RankPool,  # a late import: it imports torch, which not all tests need
    )

    pool = RankPool(num_ranks)
    yield pool
    pool.close()
