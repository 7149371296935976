"""Gloo's threads share cores with the computing thread."""

import os
import sys
from pathlib import Path

import pytest
from torch import distributed

from autopart.runtime.engine.gloo_threads import let_compute_go_first
from tests.support.runtime.rank_pool import RankPool


def policies(rank: int) -> tuple[list[int], int]:
    """Scheduling classes of gloo's threads, and of this thread."""
    distributed.new_group([0, 1])
    let_compute_go_first()
    tasks = Path("/proc/self/task").iterdir()
    gloo = [t.name for t in tasks if (t / "comm").read_text().strip() == "gloo_tcp_loop"]
    return [os.sched_getscheduler(int(thread)) for thread in gloo], os.sched_getscheduler(0)


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux names threads and their classes"
)
def test_gloo_s_threads_do_not_interrupt_the_computing_thread(two_ranks: RankPool):
    for gloo, own in two_ranks.call(policies):
        assert gloo and set(gloo) == {os.SCHED_BATCH} and own == os.SCHED_OTHER
